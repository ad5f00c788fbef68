//! The thread that owns a model: a fair queue before a running batch.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc as jobs;
use std::time::Instant;

use nextword_generate::{
    BatchOptions, BatchRequest, Batcher, Event, FinishReason, RequestId, TextGenerator,
};
use tokio::sync::mpsc;

use crate::answer::{Assembler, Piece, TokenInfo, prompt_tokens};
use crate::metrics::Metrics;

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
    Failed(String),
}

/// Comes in while an answer is made. Dropping it ends the answer within one step.
pub(crate) type Updates = mpsc::UnboundedReceiver<Update>;

/// A request on its way to the thread.
struct Job {
    waiting: VecDeque<(usize, Sequence)>,
    updates: mpsc::UnboundedSender<Update>,
    since: Instant,
}

/// The server's end of an engine.
#[derive(Debug)]
pub(crate) struct Engine {
    jobs: jobs::Sender<Job>,
    queued: Arc<AtomicUsize>,
    limit: usize,
    slots: usize,
    abort: Arc<AtomicBool>,
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
        let worker = Worker {
            batcher: Batcher::new(generator.model().clone(), options),
            generator,
            options,
            jobs: receiver,
            open: true,
            queue: VecDeque::new(),
            queued: queued.clone(),
            running: BTreeMap::new(),
            abort: abort.clone(),
            metrics: metrics.clone(),
        };
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self {
            jobs: sender,
            queued,
            limit,
            slots: options.slots,
            abort,
            metrics,
        })
    }

    /// Puts a request at the end of the queue; `None` if the queue is full.
    pub(crate) fn submit(&self, sequences: Vec<Sequence>) -> Option<Updates> {
        let more = sequences.len();
        let fits = |queued: usize| (queued + more <= self.limit.max(more)).then_some(queued + more);
        let (order, relaxed) = (Ordering::AcqRel, Ordering::Acquire);
        if self.queued.fetch_update(order, relaxed, fits).is_err() {
            self.metrics.rejected.add(1);
            return None;
        }
        let (sender, updates) = mpsc::unbounded_channel();
        let job = Job {
            waiting: sequences.into_iter().enumerate().collect(),
            updates: sender,
            since: Instant::now(),
        };
        self.jobs.send(job).ok().map(|()| updates)
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
    updates: mpsc::UnboundedSender<Update>,
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
    queued: Arc<AtomicUsize>,
    running: BTreeMap<RequestId, Running>,
    abort: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Worker {
    fn run(mut self) {
        loop {
            self.receive();
            if self.abort.load(Ordering::Acquire) {
                self.fail_all("the server is stopping");
                self.drop_queue();
            }
            self.drop_cancelled();
            self.admit();
            self.metrics.running.set(self.running.len());
            if self.running.is_empty() && self.queue.is_empty() {
                if self.open {
                    continue;
                }
                return;
            }
            self.step();
        }
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
        let (queued, metrics) = (&self.queued, &self.metrics);
        self.queue.retain(|job| {
            let stays = !job.updates.is_closed();
            if !stays {
                queued.fetch_sub(job.waiting.len(), Ordering::AcqRel);
                metrics.cancelled.add(job.waiting.len() as u64);
            }
            stays
        });
    }

    fn admit(&mut self) {
        while self.batcher.free_slots() > 0 {
            let Some(mut job) = self.queue.pop_front() else {
                return;
            };
            let Some((index, sequence)) = job.waiting.pop_front() else {
                continue;
            };
            self.queued.fetch_sub(1, Ordering::AcqRel);
            if let Err(problem) = self.start(index, sequence, &job) {
                let kind = UpdateKind::Failed(problem);
                let _ = job.updates.send(Update { index, kind }); // The client may have gone.
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
        let Ok(events) = catch_unwind(AssertUnwindSafe(|| self.batcher.step())) else {
            // No input should lead here; whatever did, the others go on with a fresh cache.
            self.fail_all("the model failed, which is a fault of the server");
            self.batcher = Batcher::new(self.generator.model().clone(), self.options);
            return;
        };
        for (id, event) in events {
            let Some(mut running) = self.running.remove(&id) else {
                continue;
            };
            if running.take(event, &mut self.batcher, id, &self.generator, &self.metrics) {
                self.running.insert(id, running);
            }
        }
    }

    fn fail_all(&mut self, message: &str) {
        for (id, running) in std::mem::take(&mut self.running) {
            self.batcher.cancel(id);
            running.send(UpdateKind::Failed(message.to_owned()));
        }
    }

    fn drop_queue(&mut self) {
        for job in self.queue.drain(..) {
            self.queued.fetch_sub(job.waiting.len(), Ordering::AcqRel);
        }
    }
}

impl Running {
    fn send(&self, kind: UpdateKind) {
        let index = self.index;
        let _ = self.updates.send(Update { index, kind }); // A client that has gone is seen later.
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
                self.send(UpdateKind::Failed(error.to_string()));
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
