"""Secrets: signing secrets encrypted at rest, API tokens stored by hash, and the form of both."""

import base64
import hashlib
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cases_service.credentials.api_tokens import ApiToken, new_token
from cases_service.credentials.secret_encryption import NoSecretKeyError, SecretBox, SecretNotOpenedError
from cases_service.credentials.signing_keys import KeyMaterialError, check_public_key, check_secret, new_secret

OLD, NEW = (base64.urlsafe_b64encode(bytes([n]) * 32).decode() for n in (1, 2))
ORGANIZATION, KEY = UUID(int=1), UUID(int=2)


def seal(box: SecretBox, secret: str = "s3cret") -> str:
    return box.seal(secret, organization_id=ORGANIZATION, key_id=KEY, algorithm="HS256")


def opened(box: SecretBox, sealed: str) -> str:
    return box.open(sealed, organization_id=ORGANIZATION, key_id=KEY, algorithm="HS256")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_sealed_secret_opens(secret: str) -> None:
    box = SecretBox([OLD])
    sealed = seal(box, secret)
    assert opened(box, sealed) == secret
    assert sealed.isascii()


def test_a_secret_is_bound_to_organization_key_and_algorithm() -> None:
    box = SecretBox([OLD])
    sealed = seal(box)
    for organization_id, key_id, algorithm in (
        (UUID(int=9), KEY, "HS256"),
        (ORGANIZATION, UUID(int=9), "HS256"),
        (ORGANIZATION, KEY, "HS512"),
    ):
        with pytest.raises(SecretNotOpenedError):
            box.open(sealed, organization_id=organization_id, key_id=key_id, algorithm=algorithm)


def test_every_key_opens_and_the_first_one_seals() -> None:
    sealed = seal(SecretBox([OLD]))
    both = SecretBox([NEW, OLD])
    assert opened(both, sealed) == "s3cret"
    assert opened(SecretBox([NEW]), seal(both)) == "s3cret"


def test_a_resealed_secret_opens_with_the_new_key_alone() -> None:
    resealed = SecretBox([NEW, OLD]).reseal(seal(SecretBox([OLD])))
    assert opened(SecretBox([NEW]), resealed) == "s3cret"
    with pytest.raises(SecretNotOpenedError):
        opened(SecretBox([OLD]), resealed)


@pytest.mark.parametrize("sealed", ["", "x", "gAAAAA", "\u00e9"])
def test_garbage_does_not_open(sealed: str) -> None:
    with pytest.raises(SecretNotOpenedError):
        opened(SecretBox([OLD]), sealed)


def test_without_keys_nothing_is_sealed_or_opened() -> None:
    sealed = seal(SecretBox([OLD]))
    with pytest.raises(NoSecretKeyError):
        seal(SecretBox([]))
    with pytest.raises(SecretNotOpenedError):
        opened(SecretBox([]), sealed)


def test_a_token_says_its_organization_and_is_kept_by_its_hash() -> None:
    organization_id = uuid4()
    text = new_token(organization_id)
    assert text.startswith("cst_")
    assert ApiToken.parse(text) == ApiToken(organization_id, hashlib.sha256(text.encode()).digest())
    assert new_token(organization_id) != text


def test_every_mistyped_character_is_noticed() -> None:
    text = new_token(uuid4())
    for index, character in enumerate(text):
        for other in ("A", "b", "-", " ", "\u00e9"):
            if other != character:
                assert ApiToken.parse(text[:index] + other + text[index + 1 :]) is None


@given(st.text())
def test_other_text_is_no_token(text: str) -> None:
    assert ApiToken.parse(text) is None
    assert ApiToken.parse(f"cst_{text}") is None


def test_a_new_secret_is_long_enough() -> None:
    check_secret(new_secret())
    check_secret("ü" * 16)
    with pytest.raises(KeyMaterialError):
        check_secret("x" * 31)


def pem(key: object) -> str:
    encoded: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded.decode()


MAKERS: dict[str, Callable[[], object]] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048).public_key(),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()).public_key(),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()).public_key(),
    "EdDSA": lambda: ed25519.Ed25519PrivateKey.generate().public_key(),
    "too short": lambda: rsa.generate_private_key(65537, 1024).public_key(),  # noqa: S505
    "another curve": lambda: ec.generate_private_key(ec.SECP521R1()).public_key(),
    "Ed448": lambda: ed448.Ed448PrivateKey.generate().public_key(),
}


@pytest.fixture(scope="module")
def public_keys() -> dict[str, str]:
    return {name: pem(make()) for name, make in MAKERS.items()}


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "ES384", "EdDSA"])
def test_a_public_key_fits_its_own_algorithm_only(public_keys: dict[str, str], algorithm: str) -> None:
    for name, key in public_keys.items():
        if name == algorithm:
            check_public_key(key, algorithm=algorithm)
        else:
            with pytest.raises(KeyMaterialError):
                check_public_key(key, algorithm=algorithm)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_white_space_around_a_public_key_does_no_harm(public_keys: dict[str, str], line_end: str) -> None:
    check_public_key(f"\n{public_keys['RS256']}\n".replace("\n", line_end), algorithm="RS256")


def test_nothing_but_the_public_key_is_taken_with_it(public_keys: dict[str, str]) -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = pem(private.public_key())
    for text in (public + secret, secret + public, public + public_keys["EdDSA"], f"Public-Key: (256 bit)\n{public}"):
        with pytest.raises(KeyMaterialError):
            check_public_key(text, algorithm="EdDSA")


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(KeyMaterialError):
        check_public_key(text, algorithm="RS256")
