//! The other ranks: where they run, and whether they still do.

use std::path::Path;
use std::sync::LazyLock;

/// What each rank tells the others at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) host: String,
    /// What numbers its processes (see [`process_space`]), without spaces.
    pub(crate) space: String,
    /// The number of its process; 0 if it is a thread.
    pub(crate) process: u32,
}

/// Identifies the processes that this one sees in `/proc`: by the boot of the system and the PID namespace. Containers
/// with the same host name have namespaces of their own. Empty on systems without `/proc`.
pub(crate) fn process_space() -> String {
    static SPACE: LazyLock<String> = LazyLock::new(|| {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let space = format!("{boot}{}", namespace.display());
        space.split_whitespace().collect()
    });
    SPACE.clone()
}

impl Peer {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        format!("{} {} {}", self.process, self.space, self.host).into_bytes()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut parts = text.splitn(3, ' ');
        let mut part = || parts.next().unwrap_or_default().to_string();
        let (process, space, host) = (part(), part(), part());
        Self {
            host,
            space,
            process: process.parse().unwrap_or(0),
        }
    }

    /// Whether `own`, a peer that is this process, sees its process.
    pub(crate) fn is_visible_to(&self, own: &Self) -> bool {
        self.host == own.host && self.space == own.space
    }

    /// Whether its process has ended, if `own`, which is this process, sees it. Of other machines and containers, and on
    /// systems without `/proc`, this is not known: false.
    pub(crate) fn has_ended(&self, own: &Self) -> bool {
        if self.process == 0 || !self.is_visible_to(own) || !Path::new("/proc/self/stat").exists() {
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
            space: process_space(),
            process: 42,
        };
        assert_eq!(Peer::from_bytes(&peer.to_bytes()), peer);
        let peer = Peer {
            space: String::new(), // Without `/proc`.
            ..peer
        };
        assert_eq!(Peer::from_bytes(&peer.to_bytes()), peer);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_has_ended_when_it_is_gone_or_a_zombie() {
        let peer = |process| Peer {
            host: "here".to_string(),
            space: process_space(),
            process,
        };
        let own = peer(std::process::id());
        let elsewhere = Peer {
            host: "elsewhere".to_string(),
            ..own.clone()
        };
        let other_container = Peer {
            space: format!("{}1", own.space),
            ..own.clone()
        };
        assert!(!own.space.is_empty());
        assert!(!own.has_ended(&own));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = child.id();
        while !peer(id).has_ended(&own) {
            std::thread::yield_now();
        }
        assert!(!peer(id).has_ended(&elsewhere));
        assert!(!peer(id).has_ended(&other_container));
        child.wait().unwrap();
        assert!(peer(id).has_ended(&own));
        assert!(!peer(0).has_ended(&own));
    }
}
