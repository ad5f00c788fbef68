//! The other ranks: where they run, and whether they still do.

use std::path::Path;

/// What each rank tells the others at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) host: String,
    /// The number of its process; 0 if it is a thread.
    pub(crate) process: u32,
}

impl Peer {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        format!("{} {}", self.process, self.host).into_bytes()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (process, host) = text.split_once(' ').unwrap_or(("0", "unknown"));
        Self {
            host: host.to_string(),
            process: process.parse().unwrap_or(0),
        }
    }

    /// Whether its process on this machine, `host`, has ended. Of other machines, and on systems without `/proc`, this
    /// is not known: false.
    pub(crate) fn has_ended(&self, host: &str) -> bool {
        if self.process == 0 || self.host != host || !Path::new("/proc/self/stat").exists() {
            return false;
        }
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process));
        // The state follows the name in parentheses; Z and X are ended processes.
        let state = |stat: &String| stat.rsplit_once(')')?.1.trim_start().chars().next();
        let state = stat.as_ref().ok().and_then(state);
        !state.is_some_and(|state| state != 'Z' && state != 'X')
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_read_from_its_bytes() {
        let peer = Peer {
            host: "node 1".to_string(),
            process: 42,
        };
        assert_eq!(Peer::from_bytes(&peer.to_bytes()), peer);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_has_ended_when_it_is_gone_or_a_zombie() {
        let peer = |process| Peer {
            host: "here".to_string(),
            process,
        };
        assert!(!peer(std::process::id()).has_ended("here"));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = child.id();
        while !peer(id).has_ended("here") {
            std::thread::yield_now();
        }
        assert!(!peer(id).has_ended("elsewhere"));
        child.wait().unwrap();
        assert!(peer(id).has_ended("here"));
        assert!(!peer(0).has_ended("here"));
    }
}
