//! The input of a stack's first block, from token ids.

use burn::tensor::{Int, Tensor};

use super::{Encoder, Transformer};
use crate::{ForwardContext, Hook, Probe};

impl Transformer {
    /// Computes the input of the first block, token embedding plus position encoding: `[batch, seq]`
    /// to `[batch, seq, d_model]`.
    pub(crate) fn embed<P: Probe>(
        &self,
        tokens: Tensor<2, Int>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        self.embed_in(None, tokens, ctx)
    }

    /// Computes the input of the encoder's first block: `[batch, source]` to
    /// `[batch, source, d_model]`.
    pub(crate) fn embed_source<P: Probe>(
        &self,
        tokens: Tensor<2, Int>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        self.embed_in(Some(self.require_encoder()), tokens, ctx)
    }

    /// Token embedding plus position encoding of the encoder, or of the model's own stack.
    fn embed_in<P: Probe>(
        &self,
        encoder: Option<&Encoder>,
        tokens: Tensor<2, Int>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        ctx.set_layer(None);
        let own_table = encoder.and_then(|encoder| encoder.token_embedding.as_ref());
        let x = match (own_table, &self.quantized_embedding) {
            (Some(table), _) => nextword_kernels::embed(table.weight.val(), tokens),
            (None, Some(table)) => nextword_kernels::embed_quantized(table, tokens),
            (None, None) => nextword_kernels::embed(self.token_embedding.weight.val(), tokens),
        };
        let x = match self.config.embedding_scale {
            Some(scale) => x * scale,
            None => x,
        };
        ctx.record(Hook::Embed, &x);
        ctx.set_positions(&self.config, self.rope.as_ref(), &x);
        assert!(
            !(self.has_adapter() && ctx.has_row_adapters()),
            "rows cannot have adapters of their own in a model with an adapter"
        );
        assert!(
            ctx.positions().mask().keys() <= self.config.context_length,
            "{} tokens do not fit into a context of {}",
            ctx.positions().mask().keys(),
            self.config.context_length
        );
        let (position_embedding, norm) = match encoder {
            Some(encoder) => (&encoder.position_embedding, &encoder.embedding_norm),
            None => (&self.position_embedding, &self.embedding_norm),
        };
        let table = match (position_embedding, &self.sinusoidal_table) {
            (Some(learned), _) => Some(learned.weight.val()),
            (None, sinusoidal) => sinusoidal.clone(),
        };
        let x = match table {
            Some(table) => {
                let encoding = ctx.positions().gather(table).cast(x.dtype());
                ctx.record(Hook::PosEmbed, &encoding);
                x + encoding
            }
            None => x,
        };
        let x = match norm {
            Some(norm) => {
                let x = norm.forward(x);
                ctx.record(Hook::FullEmbed, &x);
                x
            }
            None => x,
        };
        ctx.dropout(Hook::Embed, x, self.config.dropout.embedding)
    }
}
