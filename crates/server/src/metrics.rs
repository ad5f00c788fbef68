//! Metrics in Prometheus's text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nextword_generate::{CacheUsage, ProposalCounts};

/// A monotonic counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Raises the count to `total`. A restarted engine counts from 0 again, so a smaller total has no effect.
    fn raise(&self, total: u64) {
        self.0.fetch_max(total, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that can go up and down.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicUsize);

impl Gauge {
    fn add(&self, n: usize) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn subtract(&self, n: usize) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    fn set(&self, n: usize) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the histogram buckets, in seconds.
const BUCKET_BOUNDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// A histogram of durations in seconds.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [Counter; BUCKET_BOUNDS.len()],
    count: Counter,
    microseconds: Counter,
}

impl Histogram {
    pub(crate) fn observe(&self, seconds: f64) {
        for (bound, bucket) in BUCKET_BOUNDS.iter().zip(&self.buckets) {
            if seconds <= *bound {
                bucket.add(1);
            }
        }
        self.count.add(1);
        self.microseconds.add((seconds * 1e6) as u64);
    }

    fn write(&self, name: &str, model: &str, out: &mut String) {
        for (bound, bucket) in BUCKET_BOUNDS.iter().zip(&self.buckets) {
            let n = bucket.get();
            let _ = writeln!(out, "{name}_bucket{{model=\"{model}\",le=\"{bound}\"}} {n}");
        }
        let (count, sum) = (self.count.get(), self.microseconds.get() as f64 / 1e6);
        let _ = writeln!(
            out,
            "{name}_bucket{{model=\"{model}\",le=\"+Inf\"}} {count}"
        );
        let _ = writeln!(out, "{name}_sum{{model=\"{model}\"}} {sum}");
        let _ = writeln!(out, "{name}_count{{model=\"{model}\"}} {count}");
    }
}

/// Metrics of the requests that name one model: that of an engine, or one of its adapters.
#[derive(Debug, Default)]
pub(crate) struct RequestMetrics {
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) rejected: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) running: Gauge,
    pub(crate) first_token: Histogram,
    pub(crate) next_token: Histogram,
}

/// Counts a completion as running until it is dropped.
#[derive(Debug)]
pub(crate) struct RunningGuard(Arc<RequestMetrics>);

impl RunningGuard {
    pub(crate) fn new(metrics: Arc<RequestMetrics>) -> Self {
        metrics.running.add(1);
        Self(metrics)
    }
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.running.subtract(1);
    }
}

/// Metrics of one engine, for its model and all adapters together.
#[derive(Debug, Default)]
pub(crate) struct EngineMetrics {
    pages_used: Gauge,
    pages_cached: Gauge,
    pages_free: Gauge,
    preemptions: Counter,
    proposed: Counter,
    accepted: Counter,
}

impl EngineMetrics {
    /// Publishes how the pages of the KV cache are used.
    pub(crate) fn set_cache(&self, usage: &CacheUsage) {
        self.pages_used.set(usage.used);
        self.pages_cached.set(usage.cached);
        self.pages_free.set(usage.free);
        self.preemptions.raise(usage.preemptions);
    }

    /// Publishes the counts of speculative decoding.
    pub(crate) fn set_proposals(&self, counts: ProposalCounts) {
        self.proposed.raise(counts.proposed);
        self.accepted.raise(counts.accepted);
    }
}

/// Response counts by route and status.
#[derive(Debug, Default)]
pub(crate) struct Responses(Mutex<BTreeMap<(&'static str, u16), u64>>);

impl Responses {
    pub(crate) fn count(&self, route: &'static str, status: u16) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((route, status)).or_default() += 1;
    }

    pub(crate) fn write(&self, out: &mut String) {
        let name = "nextword_http_responses_total";
        write_header(out, name, "counter", "HTTP responses by route and status.");
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for ((route, status), n) in counts.iter() {
            let _ = writeln!(out, "{name}{{route=\"{route}\",status=\"{status}\"}} {n}");
        }
    }
}

/// A snapshot of one model's metrics for the exporter.
pub(crate) struct ModelMetrics<'a> {
    pub(crate) name: &'a str,
    pub(crate) requests: &'a RequestMetrics,
    /// The engine, unless it is that of another model.
    pub(crate) engine: Option<EngineSnapshot<'a>>,
}

/// A snapshot of an engine's metrics.
pub(crate) struct EngineSnapshot<'a> {
    pub(crate) metrics: &'a EngineMetrics,
    pub(crate) queued: usize,
    pub(crate) slots: usize,
}

/// Name, type, help and value of a metric, which `V` computes.
type Metric<V> = (&'static str, &'static str, &'static str, V);

type OfRequests = fn(&RequestMetrics) -> u64;
type OfEngine = fn(&EngineSnapshot<'_>) -> u64;

/// The counters and gauges of a model.
const REQUEST_METRICS: [Metric<OfRequests>; 6] = [
    (
        "nextword_prompt_tokens_total",
        "counter",
        "Prompt tokens processed.",
        |m| m.prompt_tokens.get(),
    ),
    (
        "nextword_cached_tokens_total",
        "counter",
        "Prompt tokens reused from the KV cache.",
        |m| m.cached_tokens.get(),
    ),
    (
        "nextword_generated_tokens_total",
        "counter",
        "Tokens generated.",
        |m| m.generated_tokens.get(),
    ),
    (
        "nextword_rejected_total",
        "counter",
        "Requests rejected because the queue was full.",
        |m| m.rejected.get(),
    ),
    (
        "nextword_cancelled_total",
        "counter",
        "Completions cancelled because the client disconnected or stopped reading.",
        |m| m.cancelled.get(),
    ),
    (
        "nextword_running",
        "gauge",
        "Completions in progress.",
        |m| m.running.get() as u64,
    ),
];

/// The counters and gauges of an engine, which adapters share with their base.
const ENGINE_METRICS: [Metric<OfEngine>; 8] = [
    (
        "nextword_queued",
        "gauge",
        "Completions waiting for a slot, with those of the model's adapters.",
        |m| m.queued as u64,
    ),
    (
        "nextword_slots",
        "gauge",
        "Maximum concurrent completions.",
        |m| m.slots as u64,
    ),
    (
        "nextword_cache_pages_used",
        "gauge",
        "Pages of the KV cache that completions in progress use.",
        |m| m.metrics.pages_used.get() as u64,
    ),
    (
        "nextword_cache_pages_cached",
        "gauge",
        "Pages of the KV cache that are kept for reuse by later prompts.",
        |m| m.metrics.pages_cached.get() as u64,
    ),
    (
        "nextword_cache_pages_free",
        "gauge",
        "Pages of the KV cache without contents.",
        |m| m.metrics.pages_free.get() as u64,
    ),
    (
        "nextword_preemptions_total",
        "counter",
        "Completions that lost their pages to older ones and were recomputed.",
        |m| m.metrics.preemptions.get(),
    ),
    (
        "nextword_proposed_tokens_total",
        "counter",
        "Tokens proposed in speculative decoding.",
        |m| m.metrics.proposed.get(),
    ),
    (
        "nextword_accepted_tokens_total",
        "counter",
        "Proposed tokens that the model accepted.",
        |m| m.metrics.accepted.get(),
    ),
];

/// Writes the metrics of all models.
pub(crate) fn write(models: &[ModelMetrics<'_>], out: &mut String) {
    for (name, kind, help, value) in REQUEST_METRICS {
        write_header(out, name, kind, help);
        for model in models {
            write_value(out, name, model.name, value(model.requests));
        }
    }
    for (name, kind, help, value) in ENGINE_METRICS {
        write_header(out, name, kind, help);
        for model in models {
            if let Some(engine) = &model.engine {
                write_value(out, name, model.name, value(engine));
            }
        }
    }
    let name = "nextword_first_token_seconds";
    write_header(
        out,
        name,
        "histogram",
        "Time from the arrival of a request to its first token.",
    );
    for model in models {
        let label = escape_label(model.name);
        model.requests.first_token.write(name, &label, out);
    }
    let name = "nextword_next_token_seconds";
    write_header(out, name, "histogram", "Time between consecutive tokens.");
    for model in models {
        let label = escape_label(model.name);
        model.requests.next_token.write(name, &label, out);
    }
}

fn write_value(out: &mut String, name: &str, model: &str, value: u64) {
    let label = escape_label(model);
    let _ = writeln!(out, "{name}{{model=\"{label}\"}} {value}");
}

fn write_header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn escape_label(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
