//! The backward pass.
//!
//! A unit of work is one head of keys and values: it goes through the queries of its group in
//! order, so that the sums of the gradients of keys and values have one order only.

use super::super::par;
use super::super::scratch;
use super::super::view::{Source, Target, View, ViewMut};
use super::backward_block::{Sides, run, scratch_len};
use super::block::{Block, QUERIES, blocks};
use super::{Options, Shape};

/// What the forward pass took and gave.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Queries.
    pub q: View<'a>,
    /// Keys.
    pub k: View<'a>,
    /// Values.
    pub v: View<'a>,
    /// The result.
    pub z: View<'a>,
    /// Log of the sum of exponentials, `[batch, n_heads, seq_q]`.
    pub lse: &'a [f32],
}

/// Gradients to write.
#[derive(Debug)]
pub struct Grads<'a> {
    /// Of the queries.
    pub q: ViewMut<'a>,
    /// Of the keys.
    pub k: ViewMut<'a>,
    /// Of the values.
    pub v: ViewMut<'a>,
}

/// Writes the gradients of queries, keys and values from `dz`, that of the result.
pub fn backward(
    shape: &Shape,
    options: &Options<'_>,
    saved: &Saved<'_>,
    dz: View<'_>,
    grads: Grads<'_>,
) {
    options.check(shape);
    let queries = [shape.batch, shape.seq_q, shape.n_heads, shape.head_dim];
    let keys = [shape.batch, shape.seq_k, shape.n_kv_heads, shape.head_dim];
    assert_eq!(saved.lse.len(), shape.batch * shape.n_heads * shape.seq_q);
    let pass = Pass {
        shape,
        options,
        from: [
            Source::new(saved.q, queries),
            Source::new(saved.k, keys),
            Source::new(saved.v, keys),
        ],
        z: Source::new(saved.z, queries),
        dz: Source::new(dz, queries),
        lse: saved.lse,
        dq: Target::new(grads.q, queries),
        dk: Target::new(grads.k, keys),
        dv: Target::new(grads.v, keys),
    };
    let units = shape.batch * shape.n_kv_heads;
    let cost = 10 * shape.group() * shape.seq_q * shape.seq_k * shape.head_dim / 32;
    par::for_each(units, cost, |unit| {
        let len = scratch_len(shape.head_dim, options.dropout.is_some());
        scratch::unit(len, |scratch| pass.kv_head(unit, scratch));
    });
}

/// All that a unit of work reads and writes.
struct Pass<'a> {
    shape: &'a Shape,
    options: &'a Options<'a>,
    from: [Source; 3],
    z: Source,
    dz: Source,
    lse: &'a [f32],
    dq: Target,
    dk: Target,
    dv: Target,
}

impl Pass<'_> {
    /// One head of keys and values.
    fn kv_head(&self, unit: usize, scratch: &mut [f32]) {
        let shape = self.shape;
        let (batch, kv_head) = (unit / shape.n_kv_heads, unit % shape.n_kv_heads);
        // SAFETY: batch and heads exist, and a unit writes only its own heads.
        unsafe {
            let dk = self.dk.tokens(batch, kv_head, 0);
            let dv = self.dv.tokens(batch, kv_head, 0);
            for token in 0..shape.seq_k {
                dk.at.add(token * dk.row).write_bytes(0, shape.head_dim);
                dv.at.add(token * dv.row).write_bytes(0, shape.head_dim);
            }
            for head in kv_head * shape.group()..(kv_head + 1) * shape.group() {
                for index in 0..blocks(shape) {
                    let first = index * QUERIES;
                    let block = Block::new(shape, self.options, self.from, (batch, head, index));
                    let lse = (batch * shape.n_heads + head) * shape.seq_q + first;
                    let lse = &self.lse[lse..lse + block.sight.queries];
                    let sides = Sides {
                        z: self.z.tokens(batch, head, first),
                        dz: self.dz.tokens(batch, head, first),
                        dq: self.dq.tokens(batch, head, first),
                        dk,
                        dv,
                    };
                    run(&block, sides, lse, scratch);
                }
            }
        }
    }
}
