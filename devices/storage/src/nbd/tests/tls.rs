//! TLS with real servers, which have it from GnuTLS.

use std::path::Path;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::load::four_queues;
use super::peers::{Peer, Place, port, strings};
use super::{chain, open, options, read};
use crate::Disk;
use crate::nbd::{NbdDisk, NbdErrorKind, NbdIdentity, NbdOptions, NbdTls};

/// Makes a CA, a server's and a client's certificate, with the names that QEMU and nbdkit have for the files.
fn certificates(directory: &Path) {
    std::fs::create_dir_all(directory).expect("a directory");
    let mut authority = CertificateParams::new(Vec::new()).expect("a CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, "Paddock's test CA");
    let key = KeyPair::generate().expect("a key");
    let certificate = authority.self_signed(&key).expect("a certificate");
    let save = |name: &str, text: String| {
        std::fs::write(directory.join(name), text).expect("it is written");
    };
    save("ca-cert.pem", certificate.pem());
    let issuer = Issuer::new(authority, key);
    for (role, names) in [
        (
            "server",
            vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        ),
        ("client", vec!["client".to_owned()]),
    ] {
        let params = CertificateParams::new(names).expect("names");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        save(&format!("{role}-cert.pem"), certificate.pem());
        save(&format!("{role}-key.pem"), key.serialize_pem());
    }
}

fn with_tls(uri: &str, directory: &Path, identity: bool) -> NbdOptions {
    let file = |name: &str| directory.join(name);
    let mut wanted = options(uri);
    wanted.connect_timeout = Duration::from_secs(5);
    wanted.tls = Some(NbdTls {
        ca: file("ca-cert.pem"),
        identity: identity.then(|| NbdIdentity {
            certificate: file("client-cert.pem"),
            key: file("client-key.pem"),
        }),
        hostname: None,
    });
    wanted
}

#[test]
fn nbdkit_by_tls_with_certificates_of_both() {
    let place = Place::new();
    let pki = place.path("pki");
    certificates(&pki);
    let port = port();
    let certificates_option = format!("--tls-certificates={}", pki.display());
    let arguments = strings([
        "-f",
        "-i",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "--tls=require",
        "--tls-verify-peer",
        &certificates_option,
        "file",
        &place.text("image"),
    ]);
    let _peer = Peer::new("nbdkit", arguments);
    let uri = format!("nbds://localhost:{port}/");
    let disk = open(&with_tls(&uri, &pki, true));
    assert!(disk.has_many_connections());
    assert_eq!(four_queues(&disk, &disk, |count| count > 200), []);

    let refused = |wanted: NbdOptions| {
        let error = NbdDisk::open(wanted).expect_err("it is refused");
        println!("{}", chain(&error));
        error.kind
    };
    // The server wants to know who we are; it hangs up, or says so.
    assert!(matches!(
        refused(with_tls(&uri, &pki, false)),
        NbdErrorKind::Tls | NbdErrorKind::Protocol
    ));
    let plain = options(&format!("nbd://localhost:{port}/"));
    assert_eq!(refused(plain.clone()), NbdErrorKind::WantsTls);
    assert_eq!(
        refused(NbdOptions {
            uri: plain.uri,
            ..with_tls(&uri, &pki, true)
        }),
        NbdErrorKind::TlsOptions { demanded: false }
    );
    assert_eq!(
        refused(NbdOptions {
            tls: None,
            ..with_tls(&uri, &pki, true)
        }),
        NbdErrorKind::TlsOptions { demanded: true }
    );
    let mut other = with_tls(&uri, &pki, true);
    other.tls.as_mut().expect("TLS").hostname = Some("elsewhere.example".to_owned());
    assert_eq!(refused(other), NbdErrorKind::Tls);
    // Another CA.
    certificates(&place.path("other"));
    let mut other = with_tls(&uri, &pki, true);
    other.tls.as_mut().expect("TLS").ca = place.path("other/ca-cert.pem");
    assert_eq!(refused(other), NbdErrorKind::Tls);
    let mut other = with_tls(&uri, &pki, true);
    other.tls.as_mut().expect("TLS").ca = place.path("other/server-key.pem");
    assert_eq!(
        refused(other),
        NbdErrorKind::Credentials(place.path("other/server-key.pem"))
    );
}

#[test]
fn qemu_nbd_by_tls_on_a_unix_socket() {
    let place = Place::new();
    let pki = place.path("pki");
    certificates(&pki);
    let credentials = format!(
        "tls-creds-x509,id=tls,endpoint=server,dir={},verify-peer=no",
        pki.display()
    );
    let arguments = strings([
        "-f",
        "raw",
        "-t",
        "-e",
        "8",
        "-k",
        &place.text("socket"),
        "--object",
        &credentials,
        "--tls-creds",
        "tls",
        &place.text("image"),
    ]);
    let _peer = Peer::new("qemu-nbd", arguments);
    let uri = place.unix("").replace("nbd+unix", "nbds+unix");
    let nameless = NbdDisk::open(with_tls(&uri, &pki, false)).expect_err("whose certificate?");
    assert_eq!(nameless.kind, NbdErrorKind::Hostname);
    let disk = open(&with_tls(
        &format!("{uri}&tls-hostname=localhost"),
        &pki,
        false,
    ));
    assert_eq!(four_queues(&disk, &disk, |count| count > 200), []);
    let mut queue = disk.open_queue(4).expect("a queue");
    assert_eq!(
        read(queue.as_mut(), 0, 1 << 20).map(|bytes| bytes.len()),
        Ok(1 << 20)
    );
}

#[test]
fn a_server_without_tls_is_not_used_when_tls_is_demanded() {
    let place = Place::new();
    certificates(&place.path("pki"));
    let arguments = strings([
        "-f",
        "raw",
        "-t",
        "-k",
        &place.text("socket"),
        &place.text("image"),
    ]);
    let _peer = Peer::new("qemu-nbd", arguments);
    drop(open(&options(&place.unix(""))));
    let uri = place.unix("").replace("nbd+unix", "nbds+unix");
    let wanted = with_tls(
        &format!("{uri}&tls-hostname=localhost"),
        &place.path("pki"),
        false,
    );
    let error = NbdDisk::open(wanted).expect_err("there is no TLS");
    assert_eq!(error.kind, NbdErrorKind::NoTls, "{}", chain(&error));
}
