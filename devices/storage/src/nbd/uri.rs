//! NBD URIs: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>, strictly. What is not understood is refused, for a parameter that is
//! ignored may have been the one that asked for security.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

use fluent_uri::Uri;
use fluent_uri::component::{Authority, Host};
use fluent_uri::pct_enc::EStr;
use fluent_uri::pct_enc::encoder::Query;

use super::protocol::MAX_STRING;

/// The port that IANA has for NBD.
const DEFAULT_PORT: u16 = 10809;

/// The longest path of a unix socket, in bytes: `sun_path` of unix(7) without its NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdAddress {
    /// A name or an IP address, and a port.
    Tcp {
        /// Without the brackets of IPv6.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
    /// A socket in Linux's abstract namespace: its name without the leading NUL.
    Abstract(Vec<u8>),
}

/// An export of a server, as a URI names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdUri {
    text: String,
    /// Where the server listens.
    pub address: NbdAddress,
    /// The export's name; empty for the server's default.
    pub export: String,
    /// Whether TLS is demanded: `nbds` and `nbds+unix`. Without it TLS is not even tried, for who can read along can also make it fail.
    pub tls: bool,
    /// Whom the server's certificate must name, where that is not the host: `tls-hostname`.
    pub tls_hostname: Option<String>,
}

/// Why a text is not the URI of an export that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Against RFC 3986.
    #[error(
        "is not a URI; write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, with %20 for a space"
    )]
    Syntax,
    /// Another protocol.
    #[error("scheme is not one of nbd, nbds, nbd+unix and nbds+unix")]
    Scheme,
    /// No server.
    #[error("names no host; write nbd://HOST[:PORT]/EXPORT")]
    NoHost,
    /// A server where there is a socket.
    #[error(
        "names a host, which a unix socket has not; write nbd+unix:///EXPORT?socket=PATH, with three slashes"
    )]
    Host,
    /// A host name that is none.
    #[error("host is not a name or an address; write IPv6 addresses in brackets")]
    BadHost,
    /// Not a number from 1 to 65535.
    #[error("port is not a number from 1 to 65535")]
    Port,
    /// Names of users are for pre-shared keys.
    #[error("names a user, which is for pre-shared keys; TLS is by certificates only")]
    User,
    /// `nbd+unix` without a socket.
    #[error("names no socket; append ?socket=PATH")]
    NoSocket,
    /// Not a path that a socket can have.
    #[error("socket is not an absolute path of at most 107 bytes")]
    Socket,
    /// A name that cannot be said in the protocol.
    #[error("export name is not UTF-8 of at most 4096 bytes without NUL")]
    Export,
    /// What it says about TLS is not what is done.
    #[error("asks for TLS by other means than certificates; use tls-type=x509, or leave it out")]
    TlsType,
    /// Peers are verified.
    #[error("asks for a server that is not verified; leave tls-verify-peer out")]
    TlsVerify,
    /// Speaks of TLS, and does not use it.
    #[error("has a parameter for TLS without using it; write nbds or nbds+unix")]
    TlsUnused,
    /// A parameter that is unknown, given twice, or without a value.
    #[error("parameter {0} is unknown, given twice, or has no value")]
    Parameter(String),
    /// What follows a number sign.
    #[error("has a fragment; write %23 for a number sign")]
    Fragment,
}

impl NbdUri {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The parameters behind the question mark.
#[derive(Default)]
struct Parameters {
    socket: Option<Vec<u8>>,
    tls: bool,
    tls_hostname: Option<String>,
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let uri = Uri::parse(text).map_err(|_| UriError::Syntax)?;
        let (tls, unix) = match uri.scheme().as_str().to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(UriError::Scheme),
        };
        if uri.has_fragment() {
            return Err(UriError::Fragment);
        }
        let parameters = parameters(uri.query())?;
        if parameters.tls && !tls {
            return Err(UriError::TlsUnused);
        }
        let address = if unix {
            if uri.authority().is_some_and(|a| !a.as_str().is_empty()) {
                return Err(UriError::Host);
            }
            socket(parameters.socket.ok_or(UriError::NoSocket)?)?
        } else {
            if parameters.socket.is_some() {
                return Err(UriError::Parameter("socket".to_owned()));
            }
            host(uri.authority().ok_or(UriError::NoHost)?)?
        };
        Ok(Self {
            text: text.to_owned(),
            address,
            export: export(&uri.path().decode().to_bytes())?,
            tls,
            tls_hostname: parameters.tls_hostname,
        })
    }
}

fn export(path: &[u8]) -> Result<String, UriError> {
    // A path without a slash in front is one behind no authority, as in nbd:name.
    let name = match path {
        [b'/', name @ ..] => name,
        [] => path,
        _ => return Err(UriError::NoHost),
    };
    match std::str::from_utf8(name) {
        Ok(name) if name.len() <= MAX_STRING && !name.contains('\0') => Ok(name.to_owned()),
        _ => Err(UriError::Export),
    }
}

fn host(authority: Authority<'_>) -> Result<NbdAddress, UriError> {
    if authority.has_userinfo() {
        return Err(UriError::User);
    }
    let port = match authority.port_to_u16() {
        Ok(port) => port.unwrap_or(DEFAULT_PORT),
        Err(_) => return Err(UriError::Port),
    };
    if port == 0 {
        return Err(UriError::Port);
    }
    let host = authority.host();
    let host = match authority.host_parsed() {
        Host::RegName(name) => {
            let name = name.decode().to_string().map_err(|_| UriError::BadHost)?;
            if name.is_empty() {
                return Err(UriError::NoHost);
            }
            let plain = |c: char| c.is_ascii_graphic() && !"/?#[]@:".contains(c);
            if !name.chars().all(plain) {
                return Err(UriError::BadHost);
            }
            name.into_owned()
        }
        // An address of a version that there is not yet.
        _ if host.starts_with("[v") => return Err(UriError::BadHost),
        _ => host.trim_matches(['[', ']']).to_owned(),
    };
    Ok(NbdAddress::Tcp { host, port })
}

fn socket(path: Vec<u8>) -> Result<NbdAddress, UriError> {
    match path.as_slice() {
        [0, name @ ..] if !name.is_empty() && name.len() <= MAX_SOCKET_PATH => {
            Ok(NbdAddress::Abstract(name.to_owned()))
        }
        [b'/', ..] if path.len() <= MAX_SOCKET_PATH && !path.contains(&0) => {
            Ok(NbdAddress::Unix(OsString::from_vec(path).into()))
        }
        _ => Err(UriError::Socket),
    }
}

fn parameters(query: Option<&EStr<Query>>) -> Result<Parameters, UriError> {
    let mut found = Parameters::default();
    let mut seen = Vec::new();
    for pair in query.into_iter().flat_map(|query| query.split('&')) {
        let bad = || UriError::Parameter(pair.as_str().chars().take(64).collect());
        let (key, value) = pair.split_once('=').ok_or_else(bad)?;
        let key = key.decode().to_string().map_err(|_| bad())?;
        let value = value.decode().to_bytes();
        if value.is_empty() || seen.contains(&key) {
            return Err(bad());
        }
        match key.as_ref() {
            "socket" => found.socket = Some(value.into_owned()),
            "tls-hostname" => {
                let name = String::from_utf8(value.into_owned()).map_err(|_| bad())?;
                found.tls_hostname = Some(name);
                found.tls = true;
            }
            "tls-type" if *value == *b"x509" => found.tls = true,
            "tls-type" => return Err(UriError::TlsType),
            "tls-verify-peer" if *value == *b"1" => found.tls = true,
            "tls-verify-peer" => return Err(UriError::TlsVerify),
            "tls-username" | "tls-psk-file" => return Err(UriError::TlsType),
            _ => return Err(bad()),
        }
        seen.push(key);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{NbdAddress, NbdUri, UriError};

    fn tcp(host: &str, port: u16) -> NbdAddress {
        let host = host.to_owned();
        NbdAddress::Tcp { host, port }
    }

    #[test]
    fn uris_say_where_and_what() {
        let socket = |path: &str| NbdAddress::Unix(path.into());
        for (text, address, export, tls) in [
            (
                "nbd://example.com/disk",
                tcp("example.com", 10809),
                "disk",
                false,
            ),
            (
                "nbd://example.com:10810/",
                tcp("example.com", 10810),
                "",
                false,
            ),
            ("NBD://10.0.0.1", tcp("10.0.0.1", 10809), "", false),
            ("nbds://[::1]:7//disk", tcp("::1", 7), "/disk", true),
            (
                "nbd://h/hello%20w%C3%B6rld",
                tcp("h", 10809),
                "hello wörld",
                false,
            ),
            (
                "nbd+unix:///disk?socket=/run/nbd.sock",
                socket("/run/nbd.sock"),
                "disk",
                false,
            ),
            (
                "nbds+unix:///?socket=/a%20b&tls-type=x509",
                socket("/a b"),
                "",
                true,
            ),
            (
                "nbd+unix:///?socket=%00/abstract",
                NbdAddress::Abstract(b"/abstract".to_vec()),
                "",
                false,
            ),
        ] {
            let uri: NbdUri = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(
                (&uri.address, uri.export.as_str(), uri.tls),
                (&address, export, tls),
                "{text}"
            );
            assert_eq!(uri.to_string(), text);
        }
        let uri: NbdUri = "nbds+unix:///?socket=/s&tls-hostname=a.example"
            .parse()
            .expect("a URI");
        assert_eq!(uri.tls_hostname.as_deref(), Some("a.example"));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let parameter = |text: &str| UriError::Parameter(text.to_owned());
        let long = format!("nbd+unix:///?socket=/{}", "x".repeat(107));
        let name = format!("nbd://h/{}", "x".repeat(4097));
        for (text, error) in [
            ("", UriError::Syntax),
            ("nbd://h/a b", UriError::Syntax),
            ("nbd://h/%zz", UriError::Syntax),
            ("nbd://[::1/", UriError::Syntax),
            ("nbd+vsock://1", UriError::Scheme),
            ("http://h/", UriError::Scheme),
            ("nbd:///disk", UriError::NoHost),
            ("nbd:disk", UriError::NoHost),
            ("nbd+unix://h/?socket=/s", UriError::Host),
            ("nbd+unix:disk?socket=/s", UriError::NoHost),
            ("nbd://[v1.x]/", UriError::BadHost),
            ("nbd://a%2Fb/", UriError::BadHost),
            ("nbd://h:0/", UriError::Port),
            ("nbd://h:65536/", UriError::Port),
            ("nbds://me@h/", UriError::User),
            ("nbd+unix:///disk", UriError::NoSocket),
            ("nbd+unix:///?socket=nbd.sock", UriError::Socket),
            ("nbd+unix:///?socket=/a%00b", UriError::Socket),
            ("nbd+unix:///?socket=%00", UriError::Socket),
            (&long, UriError::Socket),
            (&name, UriError::Export),
            ("nbd://h/a%00b", UriError::Export),
            ("nbd://h/%ff", UriError::Export),
            ("nbds://h/?tls-type=psk", UriError::TlsType),
            ("nbds://h/?tls-psk-file=/k", UriError::TlsType),
            ("nbds://h/?tls-verify-peer=0", UriError::TlsVerify),
            ("nbd://h/?tls-hostname=x", UriError::TlsUnused),
            ("nbd://h/?socket=/s", parameter("socket")),
            ("nbd://h/?x-new=1", parameter("x-new=1")),
            (
                "nbds://h/?tls-type=x509&tls-type=x509",
                parameter("tls-type=x509"),
            ),
            ("nbd://h/?socket", parameter("socket")),
            ("nbd://h/?", parameter("")),
            ("nbd://h/#1", UriError::Fragment),
        ] {
            assert_eq!(text.parse::<NbdUri>(), Err(error), "{text}");
        }
    }
}
