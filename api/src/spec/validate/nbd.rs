//! Exports of NBD servers. What follows the scheme of a URI is understood where it is used.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::config::{NbdConfig, NbdTlsConfig};
use super::super::machine::{NbdExport, NbdTls};
use super::super::pointer::JsonPointer;
use super::super::problem::{ProblemCode, Problems};
use super::super::types::{ValueError, in_range};
use super::{optional, path};

/// Bytes of a URI: one with an export name of 4096 bytes, each of them encoded.
const MAX_URI: usize = 16384;
/// Bytes of a host name.
const MAX_HOSTNAME: usize = 253;
/// In milliseconds.
const CONNECT: RangeInclusive<u64> = 100..=300_000;
const DEFAULT_CONNECT: u64 = 10_000;
const REQUEST: RangeInclusive<u64> = 100..=3_600_000;
const DEFAULT_REQUEST: u64 = 30_000;
const RECONNECT: RangeInclusive<u64> = 100..=86_400_000;
const DEFAULT_RECONNECT: u64 = 60_000;

/// Checks a disk that is an export.
pub(super) fn export(
    config: &NbdConfig,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<NbdExport> {
    if config.uri.is_none() {
        let detail = "uri is missing: write nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH";
        problems.missing(at, &["uri"], detail);
    }
    let uri = optional(problems, &at.key("uri"), config.uri.as_deref(), uri);
    let tls = match &config.tls {
        Some(tls) => certificates(tls, &at.key("tls"), problems).map(Some),
        None => Some(None),
    };
    let mut time = |key, given, range, default| {
        let what = format!("{key}, in milliseconds,");
        let time = optional(problems, &at.key(key), given, |given| {
            in_range::<u64>(&what, given, range)
        });
        time.map(|time| Duration::from_millis(time.unwrap_or(default)))
    };
    let connect = config.connect_timeout_ms;
    let connect = time("connect_timeout_ms", connect, CONNECT, DEFAULT_CONNECT);
    let request = config.request_timeout_ms;
    let request = time("request_timeout_ms", request, REQUEST, DEFAULT_REQUEST);
    let reconnect = config.reconnect_deadline_ms;
    let key = "reconnect_deadline_ms";
    let reconnect = time(key, reconnect, RECONNECT, DEFAULT_RECONNECT);
    let (uri, tls) = (uri??, tls?);
    match (demands_tls(&uri), &tls) {
        (true, None) => {
            let detail = "the URI demands TLS; give tls.ca, the CA of the server's certificate";
            problems.missing(at, &["tls"], detail);
            return None;
        }
        (false, Some(_)) => {
            let detail = "the URI does not demand TLS; write nbds in the place of nbd";
            problems.add(at.key("tls"), ProblemCode::Conflict, detail);
            return None;
        }
        _ => {}
    }
    Some(NbdExport {
        uri,
        tls,
        connect_timeout: connect?,
        request_timeout: request?,
        reconnect_deadline: reconnect?,
    })
}

fn scheme(uri: &str) -> Option<String> {
    let (scheme, _) = uri.split_once(':')?;
    Some(scheme.to_ascii_lowercase())
}

fn demands_tls(uri: &str) -> bool {
    scheme(uri).is_some_and(|scheme| scheme.starts_with("nbds"))
}

fn uri(text: &str) -> Result<String, ValueError> {
    if text.len() > MAX_URI {
        let length = text.len();
        return Err(ValueError::out_of_range(format!(
            "the URI has {length} bytes; at most {MAX_URI} are possible"
        )));
    }
    match scheme(text).as_deref() {
        Some("nbd" | "nbds" | "nbd+unix" | "nbds+unix") => Ok(text.to_owned()),
        _ => Err(ValueError::malformed(
            "the URI does not begin with nbd:, nbds:, nbd+unix: or nbds+unix:",
        )),
    }
}

fn certificates(
    config: &NbdTlsConfig,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<NbdTls> {
    if config.ca.is_none() {
        let detail = "ca is missing: name the PEM file of the CA of the server's certificate";
        problems.missing(at, &["ca"], detail);
    }
    let ca = optional(problems, &at.key("ca"), config.ca.as_deref(), path);
    let certificate = config.certificate.as_deref();
    let certificate = optional(problems, &at.key("certificate"), certificate, path);
    let key = optional(problems, &at.key("key"), config.key.as_deref(), path);
    let hostname = optional(
        problems,
        &at.key("hostname"),
        config.hostname.as_deref(),
        hostname,
    );
    let identity = match (certificate?, key?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (given, _) => {
            let (one, other) = match given {
                Some(_) => ("certificate", "key"),
                None => ("key", "certificate"),
            };
            let detail = format!("{other} is missing: it goes with {one}");
            problems.missing(at, &[other], detail);
            return None;
        }
    };
    Some(NbdTls {
        ca: ca??,
        identity,
        hostname: hostname?,
    })
}

fn hostname(text: &str) -> Result<String, ValueError> {
    if (1..=MAX_HOSTNAME).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(ValueError::out_of_range(format!(
            "the host name does not have 1 to {MAX_HOSTNAME} bytes"
        )))
    }
}
