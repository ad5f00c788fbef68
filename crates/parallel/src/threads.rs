//! Ranks as threads of one process: for tests, and to try what a number of ranks computes.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::{Control, Gather, ParallelError, Scatter, Transport};

/// What one rank sends to another.
#[derive(Debug)]
enum Message {
    Numbers(Vec<f32>),
    Bytes(Vec<u8>),
}

/// One end of channels between all pairs of threads.
#[derive(Debug)]
pub(crate) struct ThreadTransport {
    rank: usize,
    control: Control,
    to: Vec<Sender<Message>>,
    from: Vec<Receiver<Message>>,
}

/// The ends of `size` ranks, in their order, without the control of each.
pub(crate) fn ends(size: usize) -> Vec<impl FnOnce(Control) -> ThreadTransport + Send> {
    let mut to: Vec<Vec<Sender<Message>>> = (0..size).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<Receiver<Message>>> = (0..size).map(|_| Vec::new()).collect();
    for senders in &mut to {
        for receivers in &mut from {
            let (sender, receiver) = channel();
            senders.push(sender);
            receivers.push(receiver);
        }
    }
    let ends = to.into_iter().zip(from).enumerate();
    ends.map(|(rank, (to, from))| {
        move |control| ThreadTransport {
            rank,
            control,
            to,
            from,
        }
    })
    .collect()
}

impl ThreadTransport {
    fn send(&self, rank: usize, message: Message) -> Result<(), ParallelError> {
        self.to[rank].send(message).map_err(|_| lost(rank))
    }

    fn receive(&self, rank: usize) -> Result<Message, ParallelError> {
        loop {
            match self.from[rank].recv_timeout(Duration::from_millis(20)) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Disconnected) => return Err(lost(rank)),
                Err(RecvTimeoutError::Timeout) if self.control.abort_code().is_some() => {
                    return Err(lost(self.rank));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn receive_numbers(&self, rank: usize, values: &mut [f32]) -> Result<(), ParallelError> {
        match self.receive(rank)? {
            Message::Numbers(numbers) if numbers.len() == values.len() => {
                values.copy_from_slice(&numbers);
                Ok(())
            }
            _ => Err(out_of_step(rank)),
        }
    }
}

fn lost(rank: usize) -> ParallelError {
    ParallelError::Lost {
        rank: format!("rank {rank}"),
    }
}

/// The error of ranks that do not make the same calls.
fn out_of_step(rank: usize) -> ParallelError {
    ParallelError::Differs {
        rank: format!("rank {rank}"),
        subject: "what it exchanges".to_string(),
        problem: "another length or kind; hint: please report this".to_string(),
    }
}

impl Transport for ThreadTransport {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn host(&self) -> String {
        "this process".to_string()
    }

    fn has_processes(&self) -> bool {
        false
    }

    fn scatter(&mut self, scatter: Scatter<'_>) -> Result<(), ParallelError> {
        let Scatter {
            values,
            parts,
            received,
        } = scatter;
        for (rank, part) in parts.iter().enumerate() {
            self.send(rank, Message::Numbers(values[part.clone()].to_vec()))?;
        }
        let len = parts[self.rank].len();
        for rank in 0..self.size() {
            self.receive_numbers(rank, &mut received[rank * len..(rank + 1) * len])?;
        }
        Ok(())
    }

    fn gather(&mut self, gather: Gather<'_>) -> Result<(), ParallelError> {
        let Gather {
            part,
            parts,
            values,
        } = gather;
        for rank in 0..self.size() {
            self.send(rank, Message::Numbers(part.to_vec()))?;
        }
        for (rank, part) in parts.iter().enumerate() {
            self.receive_numbers(rank, &mut values[part.clone()])?;
        }
        Ok(())
    }

    fn gather_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, ParallelError> {
        for rank in 0..self.size() {
            self.send(rank, Message::Bytes(bytes.to_vec()))?;
        }
        let receive = |rank| match self.receive(rank)? {
            Message::Bytes(bytes) => Ok(bytes),
            Message::Numbers(_) => Err(out_of_step(rank)),
        };
        (0..self.size()).map(receive).collect()
    }

    fn abort(&mut self, _code: i32) {
        // Closed channels end the other ranks.
        self.to.clear();
        self.from.clear();
    }
}
