"""A keystore of DDS Security, laid out as `ros2 security create_keystore` does.

    KEYSTORE/public/ca.cert.pem, identity_ca.cert.pem, permissions_ca.cert.pem
    KEYSTORE/private/ca.key.pem                          leave it off the robot
    KEYSTORE/enclaves/governance.xml, governance.p7s
    KEYSTORE/enclaves/PATH/  cert.pem key.pem identity_ca.cert.pem permissions_ca.cert.pem
                             governance.p7s permissions.xml permissions.p7s

Keys are of the curve P-256. An enclave's certificate names its path, and so do its permissions:
one authority signs certificates, governance and permissions.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from thor_policy_ros.evaluation.enclaves import DdsTopics

VALID = datetime.timedelta(days=3650)
SECRET, PUBLIC = 0o600, 0o644
SCHEMA = "http://www.omg.org/spec/DDS-SECURITY/20170901/omg_shared_ca_{}.xsd"
_EARLIER = datetime.timedelta(hours=1)  # a robot's clock may be late


@dataclass(frozen=True)
class Authority:
    """The one that everybody trusts. Whoever has its key can let anybody in."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    since: datetime.datetime

    def sign(self, text: str) -> bytes:
        """S/MIME with the text in clear, as DDS Security wants it."""
        builder = pkcs7.PKCS7SignatureBuilder().set_data(text.encode())
        builder = builder.add_signer(self.certificate, self.key, hashes.SHA256())
        options = [pkcs7.PKCS7Options.Text, pkcs7.PKCS7Options.DetachedSignature]
        return builder.sign(serialization.Encoding.SMIME, options)


def new_authority(now: datetime.datetime) -> Authority:
    """now: with its time zone."""
    key, name = ec.generate_private_key(ec.SECP256R1()), _named("thor_policy_ros CA")
    since = now - _EARLIER
    builder = _certificate(name, name, key.public_key(), since)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
    return Authority(key, builder.sign(key, hashes.SHA256()), since)


def write_keystore(folder: Path, authority: Authority, domains: Sequence[int]) -> None:
    """The authority and the rules of the domains. FileExistsError where a keystore is already:
    its enclaves would trust another authority."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder for the keystore")
    certificate = authority.certificate.public_bytes(serialization.Encoding.PEM)
    for name in ("ca", "identity_ca", "permissions_ca"):
        _write(folder / "public" / f"{name}.cert.pem", certificate, PUBLIC)
    _write(folder / "private" / "ca.key.pem", _pem(authority.key), SECRET)
    governance = governance_xml(domains)
    _write(folder / "enclaves" / "governance.xml", governance.encode(), PUBLIC)
    _write(folder / "enclaves" / "governance.p7s", authority.sign(governance), PUBLIC)


def write_enclave(
    folder: Path, authority: Authority, path: str, topics: DdsTopics, domains: Sequence[int]
) -> Path:
    """Certificate, key and permissions of one enclave; returns its folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _certificate(
        _named(path), authority.certificate.subject, key.public_key(), authority.since
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    certificate = builder.sign(authority.key, hashes.SHA256())
    place = folder / "enclaves" / path.strip("/")
    trusted = authority.certificate.public_bytes(serialization.Encoding.PEM)
    permissions = permissions_xml(path, topics, domains, authority.since)
    for name in ("identity_ca", "permissions_ca"):
        _write(place / f"{name}.cert.pem", trusted, PUBLIC)
    _write(place / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM), PUBLIC)
    _write(place / "key.pem", _pem(key), SECRET)
    _write(place / "governance.p7s", (folder / "enclaves" / "governance.p7s").read_bytes(), PUBLIC)
    _write(place / "permissions.xml", permissions.encode(), PUBLIC)
    _write(place / "permissions.p7s", authority.sign(permissions), PUBLIC)
    return place


def governance_xml(domains: Sequence[int]) -> str:
    """Nobody joins without a certificate; every topic is checked and encrypted."""
    root = _root("governance")
    rules = ElementTree.SubElement(root, "domain_access_rules")
    rule = ElementTree.SubElement(rules, "domain_rule")
    _add_domains(rule, domains)
    for name, value in (
        ("allow_unauthenticated_participants", "false"),
        ("enable_join_access_control", "true"),
        ("discovery_protection_kind", "ENCRYPT"),
        ("liveliness_protection_kind", "ENCRYPT"),
        ("rtps_protection_kind", "SIGN"),
    ):
        ElementTree.SubElement(rule, name).text = value
    topic_rules = ElementTree.SubElement(rule, "topic_access_rules")
    topic_rule = ElementTree.SubElement(topic_rules, "topic_rule")
    for name, value in (
        ("topic_expression", "*"),
        ("enable_discovery_protection", "true"),
        ("enable_liveliness_protection", "true"),
        ("enable_read_access_control", "true"),
        ("enable_write_access_control", "true"),
        ("metadata_protection_kind", "ENCRYPT"),
        ("data_protection_kind", "ENCRYPT"),
    ):
        ElementTree.SubElement(topic_rule, name).text = value
    return _text(root)


def permissions_xml(
    path: str, topics: DdsTopics, domains: Sequence[int], since: datetime.datetime
) -> str:
    """The topics alone; what is not listed is denied."""
    root = _root("permissions")
    granted = ElementTree.SubElement(root, "permissions")
    grant = ElementTree.SubElement(granted, "grant", name=path)
    ElementTree.SubElement(grant, "subject_name").text = f"CN={path}"
    validity = ElementTree.SubElement(grant, "validity")
    ElementTree.SubElement(validity, "not_before").text = f"{since:%Y-%m-%dT%H:%M:%S}"
    ElementTree.SubElement(validity, "not_after").text = f"{since + VALID:%Y-%m-%dT%H:%M:%S}"
    rule = ElementTree.SubElement(grant, "allow_rule")
    _add_domains(rule, domains)
    for right, names in (("publish", topics.publish), ("subscribe", topics.subscribe)):
        listed = ElementTree.SubElement(ElementTree.SubElement(rule, right), "topics")
        for name in names:
            ElementTree.SubElement(listed, "topic").text = name
    ElementTree.SubElement(grant, "default").text = "DENY"
    return _text(root)


def _root(kind: str) -> ElementTree.Element:
    schema = "http://www.w3.org/2001/XMLSchema-instance"
    return ElementTree.Element(
        "dds", {"xmlns:xsi": schema, "xsi:noNamespaceSchemaLocation": SCHEMA.format(kind)}
    )


def _add_domains(rule: ElementTree.Element, domains: Sequence[int]) -> None:
    listed = ElementTree.SubElement(rule, "domains")
    for domain in domains:
        ElementTree.SubElement(listed, "id").text = str(domain)


def _text(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, since: datetime.datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer, subject, key, x509.random_serial_number(), since, since + VALID
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Readable by `mode` from the first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
