"""Signing keys for visitors' JWTs: the algorithms, their key material and its limits."""

import re
import secrets
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from cases_service.credentials.algorithms import EC_ALGORITHMS, RSA_ALGORITHMS

CURVES: Final = dict(zip(EC_ALGORITHMS, (SECP256R1, SECP384R1), strict=True))
MINIMUM_SECRET_BYTES: Final = 32
RSA_BITS: Final = range(2048, 4097)
MAXIMUM_LIVE_KEYS: Final = 10
# Public keys are stored as given, so a file that also holds the private key is rejected.
_ONE_PUBLIC_KEY: Final = re.compile(r"\s*-----BEGIN ((?:RSA )?PUBLIC KEY)-----[A-Za-z0-9+/=\s]*-----END \1-----\s*")


class KeyMaterialError(ValueError):
    """Key material does not fit its algorithm. The message says what does, and never quotes the material."""


def new_secret() -> str:
    """Return a new HMAC secret: 64 characters of 384 random bits. Its UTF-8 bytes are the key."""
    return secrets.token_urlsafe(48)


def check_secret(secret: str) -> None:
    """Raise KeyMaterialError unless the secret's UTF-8 bytes are long enough for an HMAC key."""
    if len(secret.encode()) < MINIMUM_SECRET_BYTES:
        raise KeyMaterialError(f"an HMAC secret has at least {MINIMUM_SECRET_BYTES} bytes")


def check_public_key(pem: str, *, algorithm: str) -> None:
    """Raise KeyMaterialError unless this is one public key in PEM, and nothing else, for the algorithm."""
    try:
        key = load_pem_public_key(pem.encode()) if _ONE_PUBLIC_KEY.fullmatch(pem) else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if key is None:
        raise KeyMaterialError("expected a public key in PEM, and nothing beside it: -----BEGIN PUBLIC KEY-----")
    if algorithm in RSA_ALGORITHMS:
        if not isinstance(key, RSAPublicKey) or key.key_size not in RSA_BITS:
            raise KeyMaterialError(f"{algorithm} takes an RSA key of {RSA_BITS[0]} to {RSA_BITS[-1]} bits")
    elif algorithm in CURVES:
        curve = CURVES[algorithm]
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, curve):
            raise KeyMaterialError(f"{algorithm} takes a key on the curve {curve.name}")
    elif not isinstance(key, Ed25519PublicKey):
        raise KeyMaterialError(f"{algorithm} takes an Ed25519 key")
