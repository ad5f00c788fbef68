//! The backward pass.
//!
//! A task is one key/value head: it processes the queries of its group in order, so that the
//! gradients of keys and values have a fixed summation order.

use super::super::par;
use super::super::scratch;
use super::super::view::{SharedView, SharedViewMut, View, ViewMut};
use super::backward_block::{GradViews, run, scratch_len};
use super::block::{Block, block_count, query_ranges};
use super::sizes::QUERIES;
use super::{Options, Shape};

/// Inputs and outputs of the forward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saved<'a> {
    /// Queries.
    pub(crate) q: View<'a>,
    /// Keys.
    pub(crate) k: View<'a>,
    /// Values.
    pub(crate) v: View<'a>,
    /// The output.
    pub(crate) z: View<'a>,
    /// Log-sum-exp of the scores, `[batch, n_heads, seq_q]`.
    pub(crate) lse: &'a [f32],
}

/// Gradients to compute.
#[derive(Debug)]
pub(crate) struct Grads<'a> {
    /// Gradient of the queries.
    pub(crate) q: ViewMut<'a>,
    /// Gradient of the keys.
    pub(crate) k: ViewMut<'a>,
    /// Gradient of the values.
    pub(crate) v: ViewMut<'a>,
}

/// Computes the gradients of queries, keys and values from `dz`, the gradient of the output.
pub(crate) fn backward(
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
    let pass = BackwardPass {
        shape,
        options,
        qkv: [
            SharedView::new(saved.q, queries),
            SharedView::new(saved.k, keys),
            SharedView::new(saved.v, keys),
        ],
        z: SharedView::new(saved.z, queries),
        dz: SharedView::new(dz, queries),
        lse: saved.lse,
        dq: SharedViewMut::new(grads.q, queries),
        dk: SharedViewMut::new(grads.k, keys),
        dv: SharedViewMut::new(grads.v, keys),
    };
    let tasks = shape.batch * shape.n_kv_heads;
    let cost = 10 * shape.group() * shape.seq_q * shape.seq_k * shape.head_dim / 32;
    par::for_each(tasks, cost, |task| {
        let len = scratch_len(shape.head_dim, options.dropout.is_some());
        scratch::with_task_scratch(len, |scratch| {
            // SAFETY: the views were checked for `shape` and are borrowed during this call, and
            // `task` is below `tasks`. Each key/value head has one task, and no other one accesses
            // the gradients of its group.
            unsafe { pass.kv_head(task, scratch) };
        });
    });
}

/// Everything that the tasks read and write.
struct BackwardPass<'a> {
    shape: &'a Shape,
    options: &'a Options<'a>,
    qkv: [SharedView; 3],
    z: SharedView,
    dz: SharedView,
    lse: &'a [f32],
    dq: SharedViewMut,
    dk: SharedViewMut,
    dv: SharedViewMut,
}

impl BackwardPass<'_> {
    /// Computes the gradients of one key/value head and of its group of query heads.
    ///
    /// # Safety
    /// The views must have the sizes of `shape`, and their data must be borrowed. `task` must be
    /// below `shape.batch * shape.n_kv_heads`, and nothing else may access the gradients of this
    /// key/value head and of its group.
    unsafe fn kv_head(&self, task: usize, scratch: &mut [f32]) {
        let shape = self.shape;
        let (batch, kv_head) = (task / shape.n_kv_heads, task % shape.n_kv_heads);
        // SAFETY: batch, heads and block index are within `shape`, whose sizes all views have, as
        // the caller guarantees, and ranges end within `seq_k`. So the block is valid, and `views`
        // and `lse` have its queries and keys. The caller guarantees that nothing else accesses
        // these gradients.
        unsafe {
            let dk = self.dk.tokens(batch, kv_head, 0);
            let dv = self.dv.tokens(batch, kv_head, 0);
            for token in 0..shape.seq_k {
                dk.ptr.add(token * dk.stride).write_bytes(0, shape.head_dim);
                dv.ptr.add(token * dv.stride).write_bytes(0, shape.head_dim);
            }
            for head in kv_head * shape.group()..(kv_head + 1) * shape.group() {
                for index in 0..block_count(shape) {
                    let first = index * QUERIES;
                    let ranges = query_ranges(shape, self.options, batch, index);
                    let indices = (batch, head, index);
                    let block = Block::new(shape, self.options, self.qkv, indices, ranges.as_ref());
                    let lse = (batch * shape.n_heads + head) * shape.seq_q + first;
                    let lse = &self.lse[lse..lse + block.mask.queries];
                    let views = GradViews {
                        z: self.z.tokens(batch, head, first),
                        dz: self.dz.tokens(batch, head, first),
                        dq: self.dq.tokens(batch, head, first),
                        dk,
                        dv,
                    };
                    run(&block, views, lse, scratch);
                }
            }
        }
    }
}
