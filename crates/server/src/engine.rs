//! The thread that owns a model: a fair queue before a running batch.

mod job;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc as jobs;
use std::time::{Duration, Instant};

use nextword_generate::{
    BatchOptions, BatchRequest, Batcher, Event, FinishReason, RequestId, TextGenerator,
};
use tokio::sync::mpsc;

use self::job::{Alive, Job};
use crate::answer::{Assembler, Piece, TokenInfo, prompt_tokens};
use crate::api_error::ApiError;
use crate::metrics::Metrics;

/// Updates that a request may have waiting for its reader, beside `PER_STEP` for each answer.
const BACKLOG: usize = 256;
/// The most updates of an answer in one step, with the one that says that it failed.
const PER_STEP: usize = 4;
/// So long a client may read nothing while others wait for its slot, and if none does.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Between steps while no client reads.
const REST: Duration = Duration::from_millis(2);

/// One answer that a client waits for.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) request: BatchRequest,
    pub(crate) stop: Vec<String>,
}

/// What became of one answer.
#[derive(Debug)]
pub(crate) struct Update {
    /// Number of the sequence in its request.
    pub(crate) index: usize,
    pub(crate) kind: UpdateKind,
}

#[derive(Debug)]
pub(crate) enum UpdateKind {
    /// The prompt's tokens, scored. Comes first.
    Prompt(Vec<TokenInfo>),
    Piece(Piece),
    End {
        rest: Piece,
        finish: FinishReason,
        tokens: usize,
        reused: usize,
    },
    Failed(ApiError),
}

/// Comes in while an answer is made. Dropping it ends the answer within one step.
pub(crate) type Updates = mpsc::Receiver<Update>;

/// The server's end of an engine.
#[derive(Debug)]
pub(crate) struct Engine {
    jobs: jobs::Sender<Job>,
    queued: Arc<AtomicUsize>,
    limit: usize,
    slots: usize,
    abort: Arc<AtomicBool>,
    alive: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Engine {
    /// Starts the thread. At most `limit` sequences wait.
    pub(crate) fn start(
        generator: TextGenerator,
        options: BatchOptions,
        limit: usize,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = jobs::channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let abort = Arc::new(AtomicBool::new(false));
        let alive = Arc::new(AtomicBool::new(true));
        let worker = Worker {
            batcher: Batcher::new(generator.model().clone(), options),
            generator,
            options,
            jobs: receiver,
            open: true,
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            abort: abort.clone(),
            metrics: metrics.clone(),
        };
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn({
                let alive = Alive(alive.clone());
                move || {
                    let _falls = alive;
                    worker.run();
                }
            })?;
        Ok(Self {
            jobs: sender,
            queued,
            limit,
            slots: options.slots,
            abort,
            alive,
            metrics,
        })
    }

    /// Puts a request at the end of the queue.
    ///
    /// # Errors
    /// 429 if the queue is full, 503 if the thread has ended.
    pub(crate) fn submit(&self, sequences: Vec<Sequence>) -> Result<Updates, ApiError> {
        let more = sequences.len();
        let fits = |queued: usize| (queued + more <= self.limit.max(more)).then_some(queued + more);
        let (order, relaxed) = (Ordering::AcqRel, Ordering::Acquire);
        if self.queued.fetch_update(order, relaxed, fits).is_err() {
            self.metrics.rejected.add(1);
            return Err(ApiError::busy());
        }
        let room = PER_STEP * more;
        let (sender, updates) = mpsc::channel(BACKLOG + room);
        let job = Job {
            waiting: sequences.into_iter().enumerate().collect(),
            updates: sender,
            room,
            since: Instant::now(),
            queued: self.queued.clone(),
        };
        let sent = self.jobs.send(job);
        sent.map_err(|_| self.ended())?;
        Ok(updates)
    }

    /// Whether requests can be answered.
    ///
    /// # Errors
    /// 503 if the thread has ended.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        let alive = self.alive.load(Ordering::Acquire);
        alive.then_some(()).ok_or_else(|| self.ended())
    }

    fn ended(&self) -> ApiError {
        if self.abort.load(Ordering::Acquire) {
            return ApiError::stopping();
        }
        ApiError::unavailable("this model met a fault and has ended; hint: start the server again")
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Acquire)
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// Ends all answers with an error, now.
    pub(crate) fn abort(&self) {
        self.abort.store(true, Ordering::Release);
    }
}

/// An answer in the batch.
struct Running {
    index: usize,
    updates: mpsc::Sender<Update>,
    room: usize,
    /// Since when it waits for its reader.
    held: Option<Instant>,
    assembler: Assembler,
    prompt: Vec<u32>,
    tokens: usize,
    reused: usize,
    since: Instant,
}

struct Worker {
    generator: TextGenerator,
    options: BatchOptions,
    batcher: Batcher,
    jobs: jobs::Receiver<Job>,
    /// Whether new jobs can come.
    open: bool,
    /// Each request takes its turn with one sequence.
    queue: VecDeque<Job>,
    running: BTreeMap<RequestId, Running>,
    abort: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Worker {
    fn run(mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(true) => {}
                Ok(false) => return,
                // No input should lead here; whatever did, the next ones find a fresh cache.
                Err(_) => {
                    self.fail_all(&ApiError::internal(
                        "the model failed, which is a fault of the server",
                    ));
                    self.batcher = Batcher::new(self.generator.model().clone(), self.options);
                }
            }
        }
    }

    /// One step of all answers; whether there can be more.
    fn turn(&mut self) -> bool {
        self.receive();
        if self.abort.load(Ordering::Acquire) {
            self.cancel_all();
            self.queue.clear();
        }
        self.drop_cancelled();
        self.admit();
        self.metrics.running.set(self.running.len());
        if self.running.is_empty() && self.queue.is_empty() {
            return self.open;
        }
        if self.hold_unread() {
            std::thread::sleep(REST);
        } else {
            self.step();
        }
        true
    }

    /// Takes in all new requests; waits for one if there is nothing to do.
    fn receive(&mut self) {
        self.metrics.running.set(self.running.len());
        if self.running.is_empty() && self.queue.is_empty() {
            match self.jobs.recv() {
                Ok(job) => self.queue.push_back(job),
                Err(_) => self.open = false,
            }
        }
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.queue.push_back(job),
                Err(jobs::TryRecvError::Empty) => return,
                Err(jobs::TryRecvError::Disconnected) => {
                    self.open = false;
                    return;
                }
            }
        }
    }

    /// Frees the slots and places of clients that have gone.
    fn drop_cancelled(&mut self) {
        let gone: Vec<RequestId> = self
            .running
            .iter()
            .filter(|(_, running)| running.updates.is_closed())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.batcher.cancel(id);
            self.running.remove(&id);
            self.metrics.cancelled.add(1);
        }
        let metrics = &self.metrics;
        self.queue.retain(|job| {
            let stays = !job.updates.is_closed();
            if !stays {
                metrics.cancelled.add(job.waiting.len() as u64);
            }
            stays
        });
    }

    /// Lets answers wait whose clients do not read, and ends them after a while; whether all wait.
    fn hold_unread(&mut self) -> bool {
        let (short, long) = PATIENCE;
        let patience = if self.queue.is_empty() { long } else { short };
        let mut all = true;
        let mut unread = Vec::new();
        for (id, running) in &mut self.running {
            let waits = running.updates.capacity() < running.room;
            if waits != running.held.is_some() {
                self.batcher.hold(*id, waits);
                running.held = waits.then(Instant::now);
            }
            all &= waits;
            if running.held.is_some_and(|since| since.elapsed() > patience) {
                unread.push(*id);
            }
        }
        for id in unread {
            self.batcher.cancel(id);
            if let Some(running) = self.running.remove(&id) {
                running.send(UpdateKind::Failed(ApiError::unread()));
            }
            self.metrics.cancelled.add(1);
        }
        all
    }

    fn admit(&mut self) {
        while self.batcher.free_slots() > 0 {
            let Some(mut job) = self.queue.pop_front() else {
                return;
            };
            let Some((index, sequence)) = job.next() else {
                continue;
            };
            if let Err(problem) = self.start(index, sequence, &job) {
                let kind = UpdateKind::Failed(ApiError::internal(problem));
                let _ = job.updates.try_send(Update { index, kind }); // The client may have gone.
            }
            if !job.waiting.is_empty() {
                self.queue.push_back(job);
            }
        }
    }

    fn start(&mut self, index: usize, sequence: Sequence, job: &Job) -> Result<(), String> {
        let Sequence { request, stop } = sequence;
        let prompt = request.prompt.clone();
        let tokenizer = self.generator.tokenizer().clone();
        let assembler = Assembler::new(tokenizer, &prompt, &stop).map_err(|e| e.to_string())?;
        let admitted = self.batcher.admit(request).map_err(|e| e.to_string())?;
        let id = admitted.ok_or("no slot is free")?;
        let reused = self.batcher.reused(id);
        self.metrics.prompt_tokens.add(prompt.len() as u64);
        self.metrics.cached_tokens.add(reused as u64);
        let running = Running {
            index,
            updates: job.updates.clone(),
            room: job.room,
            held: None,
            assembler,
            prompt,
            tokens: 0,
            reused,
            since: job.since,
        };
        self.running.insert(id, running);
        Ok(())
    }

    fn step(&mut self) {
        for (id, event) in self.batcher.step() {
            let Some(mut running) = self.running.remove(&id) else {
                continue;
            };
            if running.take(event, &mut self.batcher, id, &self.generator, &self.metrics) {
                self.running.insert(id, running);
            }
        }
    }

    fn cancel_all(&mut self) {
        for id in self.running.keys() {
            self.batcher.cancel(*id);
        }
        self.fail_all(&ApiError::stopping());
    }

    fn fail_all(&mut self, error: &ApiError) {
        for running in std::mem::take(&mut self.running).into_values() {
            running.send(UpdateKind::Failed(error.clone()));
        }
    }
}

impl Running {
    fn send(&self, kind: UpdateKind) {
        let index = self.index;
        // There is room, or the answer would be held; a client that has gone is seen later.
        let _ = self.updates.try_send(Update { index, kind });
    }

    /// Passes on what happened; whether the answer goes on.
    fn take(
        &mut self,
        event: Event,
        batcher: &mut Batcher,
        id: RequestId,
        generator: &TextGenerator,
        metrics: &Metrics,
    ) -> bool {
        match event {
            Event::Prompt(scores) => {
                let tokens = prompt_tokens(generator.tokenizer(), &self.prompt, &scores);
                self.send(UpdateKind::Prompt(tokens));
                true
            }
            Event::Token {
                id: token,
                score,
                finish,
            } => {
                self.count(metrics);
                let ends = finish == Some(FinishReason::Eos);
                let piece = self.assembler.push(token, score.as_ref(), ends);
                if !piece.is_empty() {
                    self.send(UpdateKind::Piece(piece));
                }
                let finish = if self.assembler.stopped() {
                    batcher.cancel(id);
                    Some(FinishReason::Stop(String::new()))
                } else {
                    finish
                };
                let goes_on = finish.is_none();
                if let Some(finish) = finish {
                    self.end(finish);
                }
                goes_on
            }
            Event::End(finish) => {
                self.end(finish);
                false
            }
            Event::Failed(error) => {
                self.send(UpdateKind::Failed(ApiError::internal(error.to_string())));
                false
            }
        }
    }

    fn count(&mut self, metrics: &Metrics) {
        let now = Instant::now();
        let histogram = if self.tokens == 0 {
            &metrics.first_token
        } else {
            &metrics.next_token
        };
        histogram.observe(now.duration_since(self.since).as_secs_f64());
        self.since = now;
        self.tokens += 1;
        metrics.generated_tokens.add(1);
    }

    fn end(&mut self, finish: FinishReason) {
        let rest = self.assembler.finish();
        // The held text may complete a stop string.
        let finish = if self.assembler.stopped() {
            FinishReason::Stop(String::new())
        } else {
            finish
        };
        self.send(UpdateKind::End {
            rest,
            finish,
            tokens: self.tokens,
            reused: self.reused,
        });
    }
}
