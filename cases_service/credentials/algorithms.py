"""The algorithms that may sign a visitor's JWT. A module of its own, so that shell completion imports nothing else."""

from typing import Final

HMAC_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512")
EC_ALGORITHMS: Final = ("ES256", "ES384")
ALGORITHMS: Final = (*HMAC_ALGORITHMS, *RSA_ALGORITHMS, *EC_ALGORITHMS, "EdDSA")
