//! Addresses: those that are requested, and where redirects lead.

use std::fmt;

use ureq::http::Uri;
use ureq::http::uri::Authority;

/// An absolute address with the scheme `http` or `https`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url(Uri);

impl Url {
    /// Parses an absolute address.
    ///
    /// # Errors
    /// What is wrong, to follow the address.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = text.parse().map_err(|_| "is not an address".to_string())?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority().map_or("", Authority::as_str);
        if !is_http || uri.host().unwrap_or_default().is_empty() {
            return Err("does not begin with http:// or https:// and a host".to_string());
        }
        if authority.contains('@') {
            return Err("contains a user name, which is not supported".to_string());
        }
        Ok(Self(uri))
    }

    /// Resolves the value of a `Location` header.
    ///
    /// # Errors
    /// What is wrong with it, to follow the address.
    pub(crate) fn join(&self, location: &str) -> Result<Self, String> {
        let (scheme, host, _) = self.server();
        let authority = self.0.authority().map_or(host, Authority::as_str);
        let text = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else if location.contains("://") {
            location.to_string()
        } else {
            let path = self.0.path();
            let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
            format!("{scheme}://{authority}{folder}{location}")
        };
        let target = Self::parse(&text)?;
        if scheme == "https" && target.server().0 == "http" {
            return Err("leads from https to http, which is not encrypted".to_string());
        }
        Ok(target)
    }

    /// Whether both addresses are of the same server: scheme, host and port are equal.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        let ((a_scheme, a_host, a_port), (b_scheme, b_host, b_port)) =
            (self.server(), other.server());
        a_scheme == b_scheme && a_port == b_port && a_host.eq_ignore_ascii_case(b_host)
    }

    /// The host, for messages.
    pub(crate) fn host(&self) -> &str {
        self.server().1
    }

    fn server(&self) -> (&str, &str, u16) {
        let scheme = self.0.scheme_str().unwrap_or_default();
        let default = if scheme == "https" { 443 } else { 80 };
        let port = self.0.port_u16().unwrap_or(default);
        (scheme, self.0.host().unwrap_or_default(), port)
    }
}

impl fmt::Display for Url {
    /// Without the query, which may contain signatures.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.0.authority().map_or("", Authority::as_str);
        write!(f, "{}://{authority}{}", self.server().0, self.0.path())
    }
}

impl From<&Url> for Uri {
    fn from(url: &Url) -> Self {
        url.0.clone()
    }
}

/// Encodes `text` for the path of an address. Slashes stay if `keep_slashes` is set.
pub(crate) fn encode(text: &str, keep_slashes: bool) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        if is_plain || (byte == b'/' && keep_slashes) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}"); // Writing to a string cannot fail.
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_or_rejected() {
        let base = Url::parse("https://hub.example:444/a/resolve/main/x?y=1").unwrap();
        for (location, target) in [
            ("/api/z?q=1#f", "https://hub.example:444/api/z?q=1"),
            ("z", "https://hub.example:444/a/resolve/main/z"),
            ("//cdn.example/z", "https://cdn.example/z"),
            ("https://cdn.example/z", "https://cdn.example/z"),
        ] {
            assert_eq!(base.join(location).unwrap(), Url::parse(target).unwrap());
        }
        for location in [
            "http://cdn.example/z",
            "file:///etc/passwd",
            "ftp://a/b",
            "https://u:p@a/b",
            "https:///x",
            "//",
            "a b",
            "/\u{7f}",
        ] {
            assert!(base.join(location).is_err(), "{location:?}");
        }
    }

    #[test]
    fn a_server_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| {
            let (a, b) = (Url::parse(a).unwrap(), Url::parse(b).unwrap());
            a.is_same_server(&b)
        };
        assert!(same("https://A.example/x", "https://a.example:443/y"));
        for other in [
            "http://a.example/",
            "https://a.example:8443/",
            "https://b.a.example/",
            "https://a.example.evil/",
        ] {
            assert!(!same("https://a.example/", other), "{other}");
        }
    }

    #[test]
    fn signatures_are_not_shown() {
        let url = Url::parse("https://a.example/b?signature=secret").unwrap();
        assert_eq!(url.to_string(), "https://a.example/b");
    }

    #[test]
    fn paths_are_encoded() {
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/ü?#%.gguf", true), "a%20b/%C3%BC%3F%23%25.gguf");
    }
}
