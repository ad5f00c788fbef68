//! Joining a group: the thread that communicates starts and finds the other ranks.

use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::{Group, Inner, Link, Settings, TIMEOUT};
use crate::exchange::{Request, Response, serve};
use crate::peers::{Peer, process_space};
use crate::{Control, ParallelError, Transport};

/// A rank whose thread has started.
pub(super) struct Starting {
    requests: Sender<Request>,
    responses: Receiver<Result<Response, ParallelError>>,
    control: Control,
    thread: JoinHandle<()>,
    joined: Receiver<Result<(usize, Vec<Peer>), ParallelError>>,
}

impl Starting {
    pub(super) fn new<T: Transport>(
        open: impl FnOnce(Control) -> Result<T, ParallelError> + Send + 'static,
    ) -> Result<Self, ParallelError> {
        let control = Control::default();
        let (requests, incoming) = channel();
        let (outgoing, responses) = channel();
        let (sender, joined) = channel();
        let thread_control = control.clone();
        let work = move || {
            let opened = open(thread_control.clone()).and_then(|mut transport| {
                let peers = exchange_names(&mut transport)?;
                Ok((transport, peers))
            });
            // If a channel is closed, nobody waits.
            match opened {
                Ok((transport, peers)) => {
                    let _ = sender.send(Ok((transport.rank(), peers)));
                    serve(transport, &thread_control, &incoming, &outgoing);
                }
                Err(error) => drop(sender.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new()
            .name("nextword-ranks".to_string())
            .spawn(work)
            .map_err(|error| ParallelError::Start(error.to_string()))?;
        Ok(Self {
            requests,
            responses,
            control,
            thread,
            joined,
        })
    }

    /// Waits until all ranks have joined.
    pub(super) fn join_group(self) -> Result<Group, ParallelError> {
        let joined = self.joined.recv();
        let ended = |_| ParallelError::Start("its thread ended".to_string());
        let (rank, peers) = joined.map_err(ended)??;
        let settings = Settings {
            timeout: TIMEOUT,
            is_stopping: Box::new(|| false),
            expects_save: false,
        };
        Ok(Group(Arc::new(Inner {
            rank,
            peers,
            link: Some(Link {
                requests: self.requests,
                responses: Mutex::new(self.responses),
                control: self.control,
                thread: Mutex::new(Some(self.thread)),
                settings: Mutex::new(settings),
                waited: AtomicU64::new(0),
            }),
        })))
    }
}

/// Tells all ranks where this one runs, and returns where they do.
fn exchange_names(transport: &mut impl Transport) -> Result<Vec<Peer>, ParallelError> {
    let own = Peer {
        host: transport.host(),
        space: process_space(),
        process: if transport.has_processes() {
            std::process::id()
        } else {
            0
        },
    };
    let all = transport.gather_bytes(&own.to_bytes())?;
    Ok(all.iter().map(|bytes| Peer::from_bytes(bytes)).collect())
}
