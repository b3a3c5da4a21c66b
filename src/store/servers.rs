//! The connection string: where a store is.

use std::fmt;
use std::net::Ipv6Addr;

use crate::lock::{AbsolutePath, PathError};

const DEFAULT_PORT: u16 = 2181;

/// Servers of one ensemble, and the chroot that the connection string may end in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    pub servers: Vec<Server>,
    pub chroot: Option<AbsolutePath>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServersError {
    #[error("it names no server")]
    Empty,
    #[error("it has an empty server name (a comma too many?)")]
    EmptyServer,
    #[error("{0:?} is no port (1 to 65535)")]
    Port(String),
    #[error("{0:?} is no host name")]
    Host(String),
    #[error("an IPv6 address is written in brackets: [{0}]:2181")]
    BareIpv6(String),
    #[error("{0:?} is no IPv6 address")]
    Ipv6(String),
    #[error("credentials do not belong into a connection string, where everybody on the host can read them")]
    Credentials,
    #[error("{0}:// is not known (HOST:PORT[,HOST:PORT][/CHROOT], with zk:// or tcp:// before it or not)")]
    Scheme(String),
    #[error("a chroot stands once, after the last server")]
    ChrootInside,
    #[error("its chroot {0:?} is not usable: {1}")]
    Chroot(String, PathError),
}

impl Servers {
    /// Parses `h1:2181,h2,[::1]:2182/chroot`, with `zk://` or `tcp://` before it, or `tcp://` before any server.
    pub fn parse(text: &str) -> Result<Servers, ServersError> {
        let text = text.trim();
        let text = text.strip_prefix("zk://").unwrap_or(text);
        if text.is_empty() {
            return Err(ServersError::Empty);
        }
        let items: Vec<&str> = text.split(',').map(str::trim).collect();
        let Some((last, others)) = items.split_last() else {
            return Err(ServersError::Empty);
        };
        let mut servers = Vec::with_capacity(items.len());
        for item in others {
            let (server, chroot) = parse_item(item)?;
            if chroot.is_some() {
                return Err(ServersError::ChrootInside);
            }
            servers.push(server);
        }
        let (server, chroot) = parse_item(last)?;
        servers.push(server);
        let chroot = chroot
            .map(|path| AbsolutePath::parse(path).map_err(|error| ServersError::Chroot(path.to_owned(), error)))
            .transpose()?;
        Ok(Servers { servers, chroot })
    }
}

fn parse_item(item: &str) -> Result<(Server, Option<&str>), ServersError> {
    let item = item.strip_prefix("tcp://").unwrap_or(item);
    if let Some((scheme, _)) = item.split_once("://") {
        return Err(ServersError::Scheme(scheme.to_owned()));
    }
    let (address, chroot) = match item.find('/') {
        Some(slash) => (&item[..slash], Some(&item[slash..])),
        None => (item, None),
    };
    Ok((address.parse()?, chroot))
}

impl std::str::FromStr for Server {
    type Err = ServersError;

    fn from_str(address: &str) -> Result<Server, ServersError> {
        if address.contains('@') {
            return Err(ServersError::Credentials);
        }
        if let Some(rest) = address.strip_prefix('[') {
            let (host, port) = rest.split_once(']').ok_or_else(|| ServersError::Ipv6(address.to_owned()))?;
            host.parse::<Ipv6Addr>().map_err(|_| ServersError::Ipv6(host.to_owned()))?;
            let port = match port.strip_prefix(':') {
                Some(port) => parse_port(port)?,
                None if port.is_empty() => DEFAULT_PORT,
                None => return Err(ServersError::Port(port.to_owned())),
            };
            return Ok(Server { host: host.to_owned(), port });
        }
        let (host, port) = match address.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(ServersError::BareIpv6(address.to_owned())),
            Some((host, port)) => (host, parse_port(port)?),
            None => (address, DEFAULT_PORT),
        };
        if host.is_empty() {
            return Err(ServersError::EmptyServer);
        }
        if !host.chars().all(|character| character.is_alphanumeric() || ".-_".contains(character)) {
            return Err(ServersError::Host(host.to_owned()));
        }
        Ok(Server { host: host.to_owned(), port })
    }
}

fn parse_port(text: &str) -> Result<u16, ServersError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if port != 0 && digits => Ok(port),
        Ok(_) | Err(_) => Err(ServersError::Port(text.to_owned())),
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The servers, without the chroot.
impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers.iter().enumerate() {
            write!(f, "{}{server}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, Option<String>) {
        let servers = Servers::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        (servers.to_string(), servers.chroot.map(|path| path.to_string()))
    }

    #[test]
    fn several_hosts_ports_ipv6_and_schemes() {
        for (text, servers, chroot) in [
            ("localhost", "localhost:2181", None),
            ("localhost:2181", "localhost:2181", None),
            ("h1:2181,h2,[::1]:2182", "h1:2181,h2:2181,[::1]:2182", None),
            (" h1:2181, h2 ", "h1:2181,h2:2181", None),
            ("zk://h1:1,h2:2/devops/x/", "h1:1,h2:2", Some("/devops/x")),
            ("tcp://h1:1,tcp://h2:2/", "h1:1,h2:2", Some("/")),
            ("[fe80::1]/a", "[fe80::1]:2181", Some("/a")),
            ("127.0.0.1:65535", "127.0.0.1:65535", None),
        ] {
            assert_eq!(parsed(text), (servers.to_owned(), chroot.map(str::to_owned)), "{text}");
        }
    }

    #[test]
    fn what_is_no_connection_string_is_refused_with_its_reason() {
        for (text, error) in [
            ("", ServersError::Empty),
            ("zk://", ServersError::Empty),
            ("h1,", ServersError::EmptyServer),
            (",h1", ServersError::EmptyServer),
            (":2181", ServersError::EmptyServer),
            ("h1:", ServersError::Port(String::new())),
            ("h1:0", ServersError::Port("0".into())),
            ("h1:+1", ServersError::Port("+1".into())),
            ("h1:70000", ServersError::Port("70000".into())),
            ("::1:2181", ServersError::BareIpv6("::1:2181".into())),
            ("[::1:2181", ServersError::Ipv6("[::1:2181".into())),
            ("[nonsense]:1", ServersError::Ipv6("nonsense".into())),
            ("[::1]2181", ServersError::Port("2181".into())),
            ("zk://me:secret@h1", ServersError::Credentials),
            ("http://h1", ServersError::Scheme("http".into())),
            ("h1/a,h2/a", ServersError::ChrootInside),
            ("h 1", ServersError::Host("h 1".into())),
            ("h1/a//b", ServersError::Chroot("/a//b".into(), PathError::EmptySegment(3))),
        ] {
            assert_eq!(Servers::parse(text), Err(error), "{text}");
        }
    }
}
