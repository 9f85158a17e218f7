use std::net::{IpAddr, SocketAddr};

/// A DNS name and a port.
const MAX_ADDRESS_BYTES: usize = 253 + 6;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not host:port")]
pub struct AddressError(String);

/// The `host:port` that somebody says it is reached at. An unspecified IP address (`0.0.0.0`, `[::]`) becomes the one
/// that it was seen to come from.
pub fn advertised(text: &str, seen: Option<IpAddr>) -> Result<String, AddressError> {
    let refuse = || AddressError(text.chars().take(MAX_ADDRESS_BYTES).collect());
    if let Ok(mut socket) = text.parse::<SocketAddr>() {
        match seen {
            _ if socket.port() == 0 => return Err(refuse()),
            Some(ip) if socket.ip().is_unspecified() => socket.set_ip(ip.to_canonical()),
            None if socket.ip().is_unspecified() => return Err(refuse()),
            _ => {}
        }
        return Ok(socket.to_string());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
    let name = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    let port = port.parse::<u16>().is_ok_and(|port| port != 0);
    if name && port && text.len() <= MAX_ADDRESS_BYTES { Ok(text.to_owned()) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let seen: Option<IpAddr> = Some("10.1.2.3".parse().unwrap());
        for (given, expected) in [
            ("192.0.2.1:4000", Some("192.0.2.1:4000")),
            ("0.0.0.0:4000", Some("10.1.2.3:4000")),
            ("[::]:4000", Some("10.1.2.3:4000")),
            ("[2001:db8::1]:4000", Some("[2001:db8::1]:4000")),
            ("node-1.example:4000", Some("node-1.example:4000")),
            ("192.0.2.1:0", None),
            ("192.0.2.1", None),
            ("node-1:", None),
            (":4000", None),
            ("a b:4000", None),
            ("node-1:70000", None),
            ("", None),
        ] {
            assert_eq!(advertised(given, seen).ok().as_deref(), expected, "{given:?}");
        }
        assert!(advertised("0.0.0.0:4000", None).is_err());
        assert!(advertised(&format!("{}:1", "a".repeat(300)), seen).is_err());
    }
}
