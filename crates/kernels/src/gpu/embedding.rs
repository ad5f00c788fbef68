//! Embedding lookup, and its gradient without a serial scan or atomics: the tokens with the same id form a
//! list, and one unit per column adds each list in order.

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::Cube;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::zeros_client;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::apply::{BackwardContext, Op, apply};
use super::launch::{buffer, empty, len, per_element};

#[derive(Clone, Debug)]
struct Embed {
    ids: CubeTensor,
    batch: usize,
    seq: usize,
    rows: usize,
    width: usize,
}

pub(crate) fn embed(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    let ([rows, width], [batch, seq]) = (table.dims(), ids.dims());
    let ids = ids.cast(DType::I32).try_into_primitive::<Cube>();
    let ids = ids.unwrap_or_else(|e| unreachable!("ids and table are on one device: {e:?}"));
    let op = Embed {
        ids: into_contiguous(ids),
        batch,
        seq,
        rows,
        width,
    };
    apply(op, [table.into()])
}

impl Op<1> for Embed {
    type Saved = ();
    const SAVES_INPUT: [bool; 1] = [false];

    fn forward(&self, [table]: [&CubeTensor; 1], _: [bool; 1]) -> (CubeTensor, ()) {
        let out = empty(table, [self.batch, self.seq, self.width]);
        if let Some((cubes, units)) = per_element(table, len(&out)) {
            let args = (buffer(table), buffer(&self.ids), buffer(&out));
            gather::launch(
                &table.client,
                cubes,
                units,
                args.0,
                args.1,
                args.2,
                self.width,
            );
        }
        (out, ())
    }

    fn backward(&self, ctx: BackwardContext<(), 1>) -> [Option<CubeTensor>; 1] {
        let grad = &ctx.grad;
        let (client, device) = (grad.client.clone(), grad.device.clone());
        let sums = zeros_client(client, device, [self.rows, self.width].into(), DType::F32);
        let tokens = self.batch * self.seq;
        let links = empty(grad, [tokens]);
        if let Some((cubes, units)) = per_element(grad, tokens) {
            link::launch(
                &grad.client,
                cubes,
                units,
                buffer(&self.ids),
                buffer(&links),
            );
        }
        if let Some((cubes, units)) = per_element(grad, len(grad)) {
            scatter::launch(
                &grad.client,
                cubes,
                units,
                buffer(&self.ids),
                buffer(&links),
                buffer(grad),
                buffer(&sums),
                self.width,
            );
        }
        [Some(sums)]
    }
}

#[cube(launch)]
fn gather(table: &[f32], ids: &[i32], out: &mut [f32], width: usize) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        out[i] = table[ids[i / width] as usize * width + i % width];
    }
}

/// For each token, the next one with the same id, or the number of tokens; and in the lowest bit whether it
/// is the first with its id.
#[cube(launch)]
fn link(ids: &[i32], links: &mut [u32]) {
    let token = ABSOLUTE_POS;
    let count = links.len();
    if token < count {
        let id = ids[token];
        let mut next = token + 1;
        while next < count && ids[next] != id {
            next += 1;
        }
        let mut earlier = 0usize;
        while ids[earlier] != id {
            earlier += 1;
        }
        links[token] = (next as u32) * 2u32 + select(earlier == token, 1u32, 0u32);
    }
}

#[cube(launch)]
fn scatter(ids: &[i32], links: &[u32], grad: &[f32], sums: &mut [f32], width: usize) {
    let i = ABSOLUTE_POS;
    if i < grad.len() {
        let (first, column) = (i / width, i % width);
        if links[first] & 1u32 == 1u32 {
            let mut sum = 0.0f32;
            let mut token = first;
            while token < links.len() {
                sum += grad[token * width + column];
                token = (links[token] >> 1u32) as usize;
            }
            let at = ids[first] as usize * width + column;
            if at < sums.len() {
                sums[at] = sum;
            }
        }
    }
}
