"""The visitor's JWT: each way it can be wrong, with its code, through the whole service."""

import base64
import hmac
import inspect
import json
import time
import zlib
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from cases_service.credentials import administration
from cases_service.credentials.api_tokens import ApiToken
from tests.conftest import LogLines
from tests.factories import LONG_AGO, Organization, Visitor, assert_problem, b64, cases_path, get, hs256

HEADER = {"alg": "HS256", "typ": "JWT"}


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    return organization.visitor("me")


@pytest.fixture
def ask(client: FlaskClient, organization: Organization, visitor: Visitor) -> Callable[[str], TestResponse]:
    """Return a function from a JWT to the answer, the JWT in the header, where any text can stand."""

    def ask(token: str) -> TestResponse:
        path = cases_path(organization.id, "-")
        return get(client, organization, path, **{"X-External-Identity": token})

    return ask


Ask = Callable[[str], TestResponse]


def pem(private_key: Any) -> str:
    public: bytes = private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public.decode()


@pytest.fixture(scope="session")
def private_keys() -> dict[str, Any]:
    rsa_key = rsa.generate_private_key(65537, 2048)
    return {
        "RS256": rsa_key,
        "RS384": rsa_key,
        "RS512": rsa_key,
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "ES384": ec.generate_private_key(ec.SECP384R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }


def test_path_and_header_both_carry_a_token(
    client: FlaskClient, organization: Organization, visitor: Visitor, ask: Ask
) -> None:
    token = organization.jwt("me")
    assert get(client, organization, cases_path(organization.id, token)).status_code == 200
    assert ask(token).status_code == 200


def test_a_dash_without_the_header_is_missing(client: FlaskClient, organization: Organization) -> None:
    assert_problem(get(client, organization, cases_path(organization.id, "-")), 400, "token_missing")


@pytest.mark.parametrize("in_header", ["a.b.c", "", "-"])
def test_path_and_header_together_are_ambiguous(
    client: FlaskClient, organization: Organization, in_header: str
) -> None:
    path = cases_path(organization.id, organization.jwt("me"))
    response = get(client, organization, path, **{"X-External-Identity": in_header})
    assert_problem(response, 400, "token_ambiguous")


def test_the_header_twice_is_ambiguous(ask: Ask, organization: Organization, visitor: Visitor) -> None:
    token = organization.jwt("me")
    assert_problem(ask(f"{token},{token}"), 400, "token_ambiguous")
    assert_problem(ask(f"{token}, {token}"), 400, "token_ambiguous")


@pytest.mark.parametrize("value", ["a,", ",a", ",", " , "])
def test_a_header_with_a_comma_beside_one_value_is_malformed(ask: Ask, value: str) -> None:
    assert_problem(ask(value), 400, "token_malformed")


def padded_token(organization: Organization, length: int) -> str:
    """Return a valid token of about a length, and never longer."""
    claims = organization.claims("me", pad="")
    room = (length - len(organization.signed(claims))) * 3 // 4
    return organization.signed({**claims, "pad": "x" * room})


def test_a_token_may_be_4000_characters_in_the_path(
    client: FlaskClient, organization: Organization, visitor: Visitor
) -> None:
    token = padded_token(organization, 4000)
    assert 3990 < len(token) <= 4000
    assert get(client, organization, cases_path(organization.id, token)).status_code == 200
    response = get(client, organization, cases_path(organization.id, "x" * 4001))
    assert_problem(response, 400, "token_too_long")


def test_a_token_may_be_8000_characters_in_the_header(ask: Ask, organization: Organization) -> None:
    token = padded_token(organization, 8000)
    assert 7990 < len(token) <= 8000
    assert ask(token).status_code == 200
    assert_problem(ask("x" * 8001), 400, "token_too_long")


MALFORMED_HEADERS = [
    '["alg"]',
    "null",
    "HS256",
    "",
    '{"alg":"HS256","alg":"HS256"}',
    '{"alg":"HS256","crit":["exp"]}',
    '{"alg":"HS256","crit":[]}',
    '{"alg":"HS256","crit":null}',
    '{"alg":"HS256","b64":true}',
    '{"alg":"HS256","b64":false}',
    '{"alg":"HS256","typ":"at+jwt"}',
    '{"alg":"HS256","typ":"jwt"}',
    '{"alg":"HS256","typ":null}',
    '{"alg":"HS256","typ":1}',
    '{"alg":"HS256"',
    '{"alg":"HS256"}{}',
    '\ufeff{"alg":"HS256"}',
    '{"alg":"HS256","x":NaN}',
]


@pytest.mark.parametrize("header", MALFORMED_HEADERS)
def test_a_header_of_another_form_is_malformed(ask: Ask, organization: Organization, header: str) -> None:
    token = hs256(organization.claims("me"), header, organization.secret)  # type: ignore[arg-type]
    assert_problem(ask(token), 400, "token_malformed")


@pytest.mark.parametrize(
    "claims",
    [
        "[]",
        '"me"',
        "1",
        "",
        '{"sub":"me","sub":"me"}',
        '{"sub":"me","exp":NaN}',
        '{"sub":"me","exp":Infinity}',
        '{"sub":"me","x":{"a":1,"a":2}}',
        "[" * 2500,
        '{"sub":\x00}',
    ],
)
def test_claims_of_another_form_are_malformed(ask: Ask, organization: Organization, claims: str) -> None:
    assert_problem(ask(organization.signed(claims)), 400, "token_malformed")


def test_deeply_nested_claims_are_refused(ask: Ask, organization: Organization) -> None:
    response = ask(organization.signed('{"x":' + "[" * 2000 + "]" * 2000 + "}"))
    # Python reads as deep only from 3.12 on, and finds that a claim is missing.
    code = response.get_json()["code"]
    assert code in ("token_malformed", "token_claim_missing")
    assert_problem(response, 400, code)


def test_what_is_not_three_parts_is_malformed(ask: Ask, organization: Organization) -> None:
    token = organization.jwt("me")
    header, claims, signature = token.split(".")
    for text in ("", ".", "..", "...", "x", f"{header}.{claims}", f"{token}.", f".{token}", f"{token}.{signature}"):
        assert_problem(ask(text), 400, "token_malformed")


@pytest.mark.parametrize(
    "change",
    [
        lambda part: part + "=",
        lambda part: part + "==",
        lambda part: part + "\n",
        lambda part: part[:5] + " " + part[5:],
        lambda part: part + "A" * ((1 - len(part)) % 4 or 4),
        lambda part: "+" + part[1:],
        lambda part: "/" + part[1:],
        lambda part: part[:3] + "\u00e9" + part[4:],
        lambda part: part[:3] + "%" + part[4:],
    ],
)
def test_base64_that_is_not_canonical_is_malformed(
    ask: Ask, organization: Organization, change: Callable[[str], str]
) -> None:
    parts = organization.jwt("me").split(".")
    for index in range(3):
        spoiled = [change(part) if i == index else part for i, part in enumerate(parts)]
        try:
            response = ask(".".join(spoiled))
        except ValueError:  # a line break cannot be sent in a header at all
            continue
        assert_problem(response, 400, "token_malformed")


def test_spare_bits_of_base64_are_zero(ask: Ask, organization: Organization) -> None:
    token = organization.jwt("me")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # The signature's 32 bytes leave two spare bits in its last character.
    last = alphabet.index(token[-1])
    assert last % 4 == 0
    assert_problem(ask(token[:-1] + alphabet[last + 1]), 400, "token_malformed")


def test_text_that_is_not_utf8_is_malformed(ask: Ask, organization: Organization) -> None:
    utf16 = b64(json.dumps(HEADER).encode("utf-16"))
    _, claims, signature = organization.jwt("me").split(".")
    assert_problem(ask(f"{utf16}.{claims}.{signature}"), 400, "token_malformed")
    latin1 = b64('{"alg":"HS256","x":"\u00ff"}'.encode("latin-1"))
    assert_problem(ask(f"{latin1}.{claims}.{signature}"), 400, "token_malformed")


def test_a_nested_token_is_malformed(ask: Ask, organization: Organization) -> None:
    inner = organization.jwt("me")
    token = hs256(inner, {**HEADER, "cty": "JWT"}, organization.secret)
    assert_problem(ask(token), 400, "token_malformed")


def test_a_compressed_token_is_malformed(ask: Ask, organization: Organization) -> None:
    """Compression is JWE's; a signature stands over what is there."""
    header, claims = b64(json.dumps({**HEADER, "zip": "DEF"}).encode()), json.dumps(organization.claims("me")).encode()
    signing_input = f"{header}.{b64(zlib.compress(claims)[2:-4])}"
    signature = hmac.new(organization.secret.encode(), signing_input.encode(), "sha256").digest()
    assert_problem(ask(f"{signing_input}.{b64(signature)}"), 400, "token_malformed")


def test_an_encrypted_token_is_malformed(ask: Ask) -> None:
    header = b64(b'{"alg":"dir","enc":"A256GCM","zip":"DEF"}')
    assert_problem(ask(f"{header}..{b64(bytes(12))}.{b64(bytes(64))}.{b64(bytes(16))}"), 400, "token_malformed")


def test_a_kid_of_a_megabyte_is_too_long(ask: Ask, organization: Organization) -> None:
    token = organization.signed(organization.claims("me"), {**HEADER, "kid": "k" * 2**20})
    assert_problem(ask(token), 400, "token_too_long")


@pytest.mark.parametrize(
    "alg",
    ["none", "None", "NONE", "nOnE", "", "HS256 ", "hs256", "HS1", "PS256", "ES512", "ES256K", "EdDSA", "RS256",
     "HS384", None, 1, ["HS256"], {"a": 1}, True],
)  # fmt: skip
def test_an_algorithm_that_no_live_key_has_is_not_allowed(ask: Ask, organization: Organization, alg: object) -> None:
    token = organization.signed(organization.claims("me"), {"alg": alg, "typ": "JWT"})
    assert_problem(ask(token), 400, "token_algorithm_not_allowed")
    unsigned = token.rpartition(".")[0] + "."
    assert_problem(ask(unsigned), 400, "token_algorithm_not_allowed")


def test_without_an_algorithm_none_is_allowed(ask: Ask, organization: Organization) -> None:
    token = organization.signed(organization.claims("me"), {"typ": "JWT"})
    assert_problem(ask(token), 400, "token_algorithm_not_allowed")


def test_an_organization_without_keys_allows_no_algorithm(ask: Ask, organization: Organization) -> None:
    token = organization.jwt("me")
    administration.retire_key(organization.connection, organization_id=organization.id, key_id=organization.kid)
    assert_problem(ask(token), 400, "token_algorithm_not_allowed")


def test_the_key_that_kid_names_must_have_the_algorithm(
    ask: Ask, organization: Organization, private_keys: dict[str, Any]
) -> None:
    kid = organization.public_key("RS256", pem(private_keys["RS256"]))
    token = organization.signed(organization.claims("me"), {**HEADER, "kid": str(kid)})
    assert_problem(ask(token), 400, "token_algorithm_not_allowed")


def test_a_public_key_is_no_hmac_secret(ask: Ask, organization: Organization, private_keys: dict[str, Any]) -> None:
    public = pem(private_keys["RS256"])
    organization.public_key("RS256", public)
    assert_problem(ask(hs256(organization.claims("me"), HEADER, public)), 400, "token_signature_invalid")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_public_key_alone_lets_no_hmac_pass(
    ask: Ask, organization: Organization, private_keys: dict[str, Any], algorithm: str
) -> None:
    public = pem(private_keys[algorithm])
    kid = organization.public_key(algorithm, public)
    administration.retire_key(organization.connection, organization_id=organization.id, key_id=organization.kid)
    for secret in (public, public.strip(), public.replace("\n", "\r\n"), "".join(public.splitlines()[1:-1])):
        for header in (HEADER, {**HEADER, "kid": str(kid)}):
            token = hs256(organization.claims("me"), header, secret)
            assert_problem(ask(token), 400, "token_algorithm_not_allowed")


@pytest.mark.parametrize(("algorithm", "swapped"), [("RS256", "RS512"), ("RS512", "RS256"), ("ES256", "ES384")])
def test_a_public_key_has_one_algorithm_of_its_family(
    ask: Ask, organization: Organization, private_keys: dict[str, Any], algorithm: str, swapped: str
) -> None:
    kid = organization.public_key(algorithm, pem(private_keys[algorithm]))
    for headers in (None, {"kid": str(kid)}):
        token = jwt.encode(organization.claims("me"), private_keys[swapped], algorithm=swapped, headers=headers)
        assert_problem(ask(token), 400, "token_algorithm_not_allowed")


def test_an_algorithm_swapped_within_the_family_is_not_allowed(ask: Ask, organization: Organization) -> None:
    token = hs256(organization.claims("me"), {"alg": "HS512"}, organization.secret, "sha512")
    assert_problem(ask(token), 400, "token_algorithm_not_allowed")


def test_kid_in_upper_case_names_the_same_key(ask: Ask, organization: Organization) -> None:
    header = {**HEADER, "kid": str(organization.kid).upper()}
    assert ask(organization.signed(organization.claims("me"), header)).status_code == 200


@pytest.mark.parametrize(
    "kid",
    [
        None,
        1,
        [],
        {},
        True,
        "",
        "../../etc/passwd",
        "' or 1=1 --",
        "a\u0000b",
        "\ud800",
        "x" * 4000,
        "1b261400-48db-4d87-83d5-f0970512cb28",
        "K" * 36,
    ],
)
def test_a_kid_that_names_no_live_key_is_unknown(ask: Ask, organization: Organization, kid: object) -> None:
    token = organization.signed(organization.claims("me"), {**HEADER, "kid": kid})
    assert_problem(ask(token), 400, "token_key_unknown")


def test_unknown_retired_and_foreign_kids_look_alike(ask: Ask, organization: Organization) -> None:
    other = Organization(organization.connection, organization.box)
    retired, secret = organization.key()
    administration.retire_key(organization.connection, organization_id=organization.id, key_id=retired)
    answers = []
    for kid, key in ((uuid4(), "x" * 32), (retired, secret), (other.kid, other.secret)):
        token = hs256(organization.claims("me"), {**HEADER, "kid": str(kid)}, key)
        answers.append(assert_problem(ask(token), 400, "token_key_unknown"))
        answers[-1].pop("request_id")
    assert answers[0] == answers[1] == answers[2]


def test_without_kid_every_live_key_of_the_algorithm_is_tried(ask: Ask, organization: Organization) -> None:
    keys = [organization.key()[1] for _ in range(3)]
    for secret in (organization.secret, *keys):
        assert ask(hs256(organization.claims("me"), HEADER, secret)).status_code == 200


def test_two_keys_overlap_until_the_old_one_is_retired(ask: Ask, organization: Organization) -> None:
    old = organization.signed(organization.claims("me"), {**HEADER, "kid": str(organization.kid)})
    kid, secret = organization.key()
    new = hs256(organization.claims("me"), {**HEADER, "kid": str(kid)}, secret)
    assert [ask(token).status_code for token in (old, new)] == [200, 200]
    administration.retire_key(organization.connection, organization_id=organization.id, key_id=organization.kid)
    assert_problem(ask(old), 400, "token_key_unknown")
    assert ask(new).status_code == 200


def test_a_kid_pins_the_key(ask: Ask, organization: Organization) -> None:
    kid, _ = organization.key()
    token = organization.signed(organization.claims("me"), {**HEADER, "kid": str(kid)})
    assert_problem(ask(token), 400, "token_signature_invalid")


def test_keys_in_the_header_are_ignored(ask: Ask, organization: Organization, private_keys: dict[str, Any]) -> None:
    key = private_keys["RS256"]
    organization.public_key("RS256", pem(rsa.generate_private_key(65537, 2048)))
    jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    evil = "https://evil.example/x"
    headers = {"jwk": jwk, "jku": evil, "x5u": evil, "x5c": ["MIIB"], "x5t": "x", "x5t#S256": "x"}
    token = jwt.encode(organization.claims("me"), key, algorithm="RS256", headers=headers)
    assert_problem(ask(token), 400, "token_signature_invalid")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_the_longer_hmacs_are_accepted(ask: Ask, organization: Organization, algorithm: str) -> None:
    _, secret = organization.key(algorithm)
    digest = algorithm.replace("HS", "sha")
    assert ask(hs256(organization.claims("me"), {"alg": algorithm}, secret, digest)).status_code == 200


def test_a_secret_is_its_utf8_bytes(ask: Ask, organization: Organization) -> None:
    _, secret = organization.key(secret="schlüssel-" * 4)
    assert ask(hs256(organization.claims("me"), HEADER, secret)).status_code == 200


def test_a_secret_that_looks_like_pem_is_a_secret(
    ask: Ask, organization: Organization, private_keys: dict[str, Any]
) -> None:
    _, secret = organization.key(secret=pem(private_keys["ES256"]))
    assert ask(hs256(organization.claims("me"), HEADER, secret)).status_code == 200


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "ES256", "ES384", "EdDSA"])
def test_asymmetric_keys_verify(
    ask: Ask, organization: Organization, private_keys: dict[str, Any], algorithm: str
) -> None:
    key = private_keys[algorithm]
    kid = organization.public_key(algorithm, pem(key))
    for headers in ({"kid": str(kid)}, None):
        token = jwt.encode(organization.claims("me"), key, algorithm=algorithm, headers=headers)
        assert ask(token).status_code == 200
        spoiled = jwt.encode(organization.claims("you"), key, algorithm=algorithm, headers=headers).split(".")
        swapped = ".".join([*token.split(".")[:2], spoiled[2]])
        assert_problem(ask(swapped), 400, "token_signature_invalid")


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "EdDSA"])
def test_a_signature_of_another_length_is_invalid(
    ask: Ask, organization: Organization, private_keys: dict[str, Any], algorithm: str
) -> None:
    if algorithm != "HS256":
        organization.public_key(algorithm, pem(private_keys[algorithm]))
    signing_input = f"{b64(json.dumps({'alg': algorithm}).encode())}.{b64(b'{}')}"
    for signature in (b"", b"x", b"x" * 64, b"\0" * 64, b"x" * 2000):
        assert_problem(ask(f"{signing_input}.{b64(signature)}"), 400, "token_signature_invalid")


def test_one_bit_flipped_anywhere_is_refused(ask: Ask, organization: Organization) -> None:
    token = organization.jwt("me")
    for index in range(0, len(token), 3):
        flipped = token[:index] + chr(ord(token[index]) ^ 1) + token[index + 1 :]
        assert ask(flipped).status_code == 400


def test_one_bit_flipped_in_what_a_segment_says_is_told_by_the_first_check_that_sees_it(
    ask: Ask, organization: Organization
) -> None:
    header = json.dumps({**HEADER, "kid": str(organization.kid)}, separators=(",", ":")).encode()
    parts = organization.signed(organization.claims("me"), json.loads(header)).split(".")
    raw = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts]

    def code_without(segment: int, position: int) -> str:
        flipped = bytearray(raw[segment])
        flipped[position] ^= 1
        spoiled = [b64(bytes(flipped)) if index == segment else part for index, part in enumerate(parts)]
        code: str = ask(".".join(spoiled)).get_json()["code"]
        return code

    assert code_without(0, 0) == "token_malformed"
    assert code_without(0, raw[0].index(b"HS256")) == "token_algorithm_not_allowed"
    assert code_without(0, raw[0].index(b"JWT")) == "token_malformed"
    assert code_without(0, raw[0].index(str(organization.kid).encode())) == "token_key_unknown"
    assert code_without(1, 0) == "token_malformed"
    assert code_without(1, raw[1].index(b'me"')) == "token_signature_invalid"
    assert {code_without(2, position) for position in range(len(raw[2]))} == {"token_signature_invalid"}


def test_the_signature_of_another_payload_is_invalid(ask: Ask, organization: Organization) -> None:
    mine, yours = organization.jwt("me").split("."), organization.jwt("you").split(".")
    assert_problem(ask(".".join([*yours[:2], mine[2]])), 400, "token_signature_invalid")


def test_each_check_comes_before_the_next_one(ask: Ask, organization: Organization) -> None:
    """The token of each line has a fault that the line's check sees, and one for each later check."""
    expired = {"exp": time.time() + 10**6, "nbf": time.time() + 600, "sub": "me"}
    wrong = "x" * 32
    for code, claims, header, secret in (
        ("token_malformed", {"sub": 1}, {"typ": "x", "alg": "none", "kid": 1}, wrong),
        ("token_algorithm_not_allowed", {"sub": 1}, {"alg": "none", "kid": 1}, wrong),
        ("token_key_unknown", {"sub": 1}, {"alg": "HS256", "kid": 1}, wrong),
        ("token_signature_invalid", {"sub": 1}, {"alg": "HS256"}, wrong),
        ("token_claim_missing", {"sub": 1}, HEADER, organization.secret),
        ("token_claim_invalid", {"sub": 1, "exp": 1}, HEADER, organization.secret),
        ("token_expired", {**expired, "exp": 1}, HEADER, organization.secret),
        ("token_not_yet_valid", expired, HEADER, organization.secret),
        ("token_lifetime_too_long", {**expired, "nbf": 1}, HEADER, organization.secret),
    ):
        assert_problem(ask(hs256(claims, header, secret)), 400, code)
    assert_problem(ask("x" * 8001), 400, "token_too_long")


def test_an_answer_tells_no_more_than_its_code(
    ask: Ask, organization: Organization, private_keys: dict[str, Any]
) -> None:
    other = Organization(organization.connection, organization.box)
    organization.public_key("ES256", pem(private_keys["ES256"]))
    alike = [
        [hs256({}, {"alg": alg, **kid}, "x" * 32) for alg in ("none", "RS256", "PS256") for kid in ({}, {"kid": "x"})],
        [hs256({}, {"alg": "HS256", "kid": kid}, "x" * 32) for kid in ("x", 1, str(uuid4()), str(other.kid))],
        [
            other.jwt("me"),
            organization.signed(organization.claims("me"), secret="x" * 32),
            organization.signed({"sub": None}, secret="x" * 32),
            jwt.encode(organization.claims("me"), ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
            f"{b64(json.dumps({'alg': 'HS256', 'kid': str(organization.kid)}).encode())}.{b64(b'{}')}.",
        ],
    ]
    for tokens in alike:
        answers = [ask(token).get_json() for token in tokens]
        for answer in answers:
            answer.pop("request_id")
        assert all(answer == answers[0] for answer in answers)


def test_macs_and_checksums_are_compared_in_constant_time() -> None:
    """PyJWT's MACs and our checksum; an API token itself is found by its hash, which its bearer cannot steer."""
    assert "compare_digest(" in inspect.getsource(jwt.algorithms.HMACAlgorithm.verify)
    assert "compare_digest(" in inspect.getsource(ApiToken.parse)
    assert "==" not in inspect.getsource(ApiToken.parse)


def test_a_token_of_another_organization_is_invalid(ask: Ask, organization: Organization) -> None:
    other = Organization(organization.connection, organization.box)
    assert_problem(ask(other.jwt("me")), 400, "token_signature_invalid")


def test_claims_are_read_only_after_the_signature_holds(ask: Ask, organization: Organization) -> None:
    assert_problem(ask(hs256({"exp": 1}, HEADER, "wrong" * 8)), 400, "token_signature_invalid")


@pytest.mark.parametrize("missing", ["sub", "exp"])
def test_a_missing_claim_is_named(ask: Ask, organization: Organization, missing: str) -> None:
    claims = organization.claims("me")
    del claims[missing]
    document = assert_problem(ask(organization.signed(claims)), 400, "token_claim_missing")
    assert missing in document["detail"]


@pytest.mark.parametrize("subject", [None, 1, True, [], ["me"], {}, "", "x" * 257, "a\u0000", "\ud800", "a\udfffb"])
def test_a_subject_is_text_of_1_to_256_characters(ask: Ask, organization: Organization, subject: object) -> None:
    token = organization.signed({**organization.claims("x"), "sub": subject})
    assert_problem(ask(token), 400, "token_claim_invalid")


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value",
    ["null", "true", "false", '"1"', '"9999999999"', "[]", "[9999999999]", "{}", "-1", "-0.5", "1e999", "-1e999",
     "253402300800", "1e12", "1" + "0" * 50, "9" * 5000],
)  # fmt: skip
def test_a_time_is_a_finite_number_of_the_years_1970_to_9999(
    ask: Ask, organization: Organization, name: str, value: str
) -> None:
    others = {"sub": "me", "exp": int(time.time()) + 60}
    others.pop(name, None)
    claims = json.dumps(others)[:-1] + f', "{name}": {value}}}'
    assert_problem(ask(organization.signed(claims)), 400, "token_claim_invalid")


def test_fractions_of_a_second_are_numbers(ask: Ask, organization: Organization) -> None:
    now = time.time()
    assert ask(organization.jwt("me", exp=now + 60.5, iat=now - 0.5, nbf=1e9)).status_code == 200


def test_a_token_expires_after_the_leeway(ask: Ask, organization: Organization) -> None:
    now = time.time()
    assert ask(organization.jwt("me", exp=now - 25)).status_code == 200
    assert_problem(ask(organization.jwt("me", exp=now - 31)), 400, "token_expired")
    assert_problem(ask(organization.jwt("me", exp=0)), 400, "token_expired")


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_token_of_the_future_is_not_yet_valid(ask: Ask, organization: Organization, name: str) -> None:
    now = time.time()
    assert ask(organization.jwt("me", **{name: now + 25})).status_code == 200
    assert_problem(ask(organization.jwt("me", **{name: now + 60})), 400, "token_not_yet_valid")


def test_a_token_may_be_valid_for_a_day(ask: Ask, organization: Organization) -> None:
    now = time.time()
    assert ask(organization.jwt("me", exp=now + 86400 + 20)).status_code == 200
    assert_problem(ask(organization.jwt("me", exp=now + 86400 + 60)), 400, "token_lifetime_too_long")


def test_an_audience_that_nobody_configured_is_invalid(ask: Ask, organization: Organization) -> None:
    for audience in ("cases", ["cases"], None, [], 1):
        assert_problem(ask(organization.jwt("me", aud=audience)), 400, "token_claim_invalid")


def test_an_issuer_that_nobody_configured_is_ignored(ask: Ask, organization: Organization) -> None:
    assert ask(organization.jwt("me", iss=["any"])).status_code == 200


def test_the_configured_audience_and_issuer_are_required(
    make_client: Callable[..., FlaskClient], organization: Organization, visitor: Visitor
) -> None:
    client = make_client(jwt_audience="cases", jwt_issuer="shop")

    def ask(**claims: Any) -> TestResponse:
        return get(client, organization, cases_path(organization.id, organization.jwt("me", **claims)))

    accepted: list[Any] = ["cases", ["other", "cases"]]
    for audience in accepted:
        assert ask(aud=audience, iss="shop").status_code == 200
    refused: list[Any] = ["other", [], ["cases", 1], None, {"cases": 1}]
    for audience in refused:
        assert_problem(ask(aud=audience, iss="shop"), 400, "token_claim_invalid")
    assert_problem(ask(iss="shop"), 400, "token_claim_invalid")
    assert_problem(ask(aud="cases"), 400, "token_claim_invalid")
    assert_problem(ask(aud="cases", iss=["shop"]), 400, "token_claim_invalid")


def test_the_rules_of_time_are_settings(
    make_client: Callable[..., FlaskClient], organization: Organization, visitor: Visitor
) -> None:
    client = make_client(jwt_require_exp=False, jwt_leeway=0, jwt_max_ttl=60)
    endless = organization.signed({"sub": "me"})
    assert get(client, organization, cases_path(organization.id, endless)).status_code == 200
    late = cases_path(organization.id, organization.jwt("me", exp=time.time() - 1))
    assert_problem(get(client, organization, late), 400, "token_expired")
    long = cases_path(organization.id, organization.jwt("me", exp=time.time() + 62))
    assert_problem(get(client, organization, long), 400, "token_lifetime_too_long")


def test_a_secret_that_no_key_opens_is_an_internal_error(
    make_client: Callable[..., FlaskClient], organization: Organization, visitor: Visitor,
    log_lines: LogLines,
) -> None:  # fmt: skip
    client = make_client(secret_key=None)
    # The second one is verified with what the token opened before, and then with what it opens now.
    for path in (visitor.path, visitor.path):
        assert_problem(get(client, organization, path), 500, "internal_error")
        lines = log_lines()
        told = [line["key_id"] for line in lines if line["event"] == "secret_not_opened"]
        assert told == [str(organization.kid)]
        assert organization.secret not in str(lines)


def test_a_secret_that_no_key_opens_stands_in_no_other_keys_way(
    client: FlaskClient, organization: Organization, visitor: Visitor
) -> None:
    organization.update("signing_keys", "id", organization.kid, encrypted_secret="lost", created_at=LONG_AGO)
    _, organization.secret = organization.key()
    for path in (visitor.path, visitor.path):
        assert get(client, organization, path).status_code == 200


def test_a_secret_copied_to_another_key_does_not_open(ask: Ask, organization: Organization, visitor: Visitor) -> None:
    other = Organization(organization.connection, organization.box)
    row = organization.connection.execute(
        "select encrypted_secret from signing_keys where id = %s", [other.kid]
    ).fetchone()
    assert row
    organization.update("signing_keys", "id", organization.kid, encrypted_secret=row[0])
    assert_problem(ask(hs256(organization.claims("me"), HEADER, other.secret)), 500, "internal_error")
