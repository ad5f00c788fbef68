//! Quantized folders become GGUF files with the same blocks, and Hugging Face folders with the same values.

use nextword_convert::{GgufType, export_gguf, export_hf};
use nextword_model::weights::{FloatType, TensorFile, WeightSource, dequantized_values};
use nextword_model::{Bits, ModelCard, ModelConfig, ModelDir, presets};

use crate::gguf::read;
use crate::util::{flex, root};

/// A quantized folder with the tokenizer of the letters model.
fn quantized(dir: &std::path::Path, config: &ModelConfig, bits: Bits) -> ModelDir {
    let letters = ModelDir::open(&root().join("docs/models/letters")).unwrap();
    let config = ModelConfig {
        vocab_size: letters.config.vocab_size,
        d_model: 64,
        n_heads: 4,
        n_layers: 2,
        context_length: 16,
        d_ff: Some(96),
        ..config.clone()
    };
    let model = config.init(&flex(), 3).unwrap().quantize(bits);
    let tokenizer = std::fs::read_to_string(letters.tokenizer_path()).unwrap();
    let path = dir.join(format!("{bits:?}"));
    let _ = std::fs::remove_dir_all(&path);
    ModelDir::save(&path, &model, &tokenizer, &ModelCard::default()).unwrap();
    ModelDir::open(&path).unwrap()
}

/// Llama reorders the rows of queries and keys; GPT-2 joins the three matrices of attention.
#[test]
fn a_quantized_folder_is_exported_to_gguf_block_by_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let llama = ModelConfig {
        n_kv_heads: Some(2),
        tied_head: false,
        ..presets::llama_like(5)
    };
    for (config, is_llama) in [(llama, true), (ModelConfig::default(), false)] {
        for (bits, kind, file_type) in [(Bits::Int8, 8, "7"), (Bits::Int4, 3, "3")] {
            let folder = quantized(dir.path(), &config, bits);
            export_gguf(&folder, GgufType::F32, &path).unwrap();
            let gguf = read(&path);
            assert_eq!(gguf.meta["general.file_type"], file_type);
            let file = TensorFile::open(&folder.weights_path()).unwrap();
            let blocks = |name: &str, shape| {
                let matrix = file.quantized_matrix(name, shape).unwrap().unwrap();
                matrix.to_gguf().unwrap()
            };
            let vocab = folder.config.vocab_size;
            let table = &gguf.tensors["token_embd.weight"];
            assert_eq!(
                (table.1, &table.2),
                (8, &blocks("token_embedding.weight", [64, vocab]))
            );
            let down = &gguf.tensors["blk.1.ffn_down.weight"];
            assert_eq!(down.1, kind);
            assert_eq!(
                down.2,
                blocks("blocks.1.feed_forward.down.weight", [96, 64])
            );
            let of = |name: &str, d_out| {
                blocks(&format!("blocks.0.attention.{name}.weight"), [64, d_out])
            };
            if is_llama {
                let (ours, theirs) = (of("query", 64), &gguf.tensors["blk.0.attn_q.weight"].2);
                let row = ours.len() / 64;
                for head in 0..4 {
                    for i in 0..16 {
                        let from = head * 16 + i / 2 + i % 2 * 8;
                        let to = head * 16 + i;
                        assert_eq!(theirs[to * row..][..row], ours[from * row..][..row]);
                    }
                }
                assert_eq!(gguf.tensors["blk.0.attn_v.weight"].2, of("value", 32));
            } else {
                let joined = [of("query", 64), of("key", 64), of("value", 64)].concat();
                assert_eq!(gguf.tensors["blk.0.attn_qkv.weight"].2, joined);
            }
        }
    }
}

#[test]
fn a_quantized_folder_is_exported_to_hugging_face_dequantized() {
    let dir = tempfile::tempdir().unwrap();
    let llama = ModelConfig {
        n_kv_heads: Some(2),
        ..presets::llama_like(5)
    };
    let folder = quantized(dir.path(), &llama, Bits::Int4);
    let hf = dir.path().join("hf");
    export_hf(&folder, FloatType::F32, &hf).unwrap();
    let ours = TensorFile::open(&folder.weights_path()).unwrap();
    let theirs = TensorFile::open(&hf.join("model.safetensors")).unwrap();
    let shape = [folder.config.vocab_size, 64];
    let table = dequantized_values(&ours, "token_embedding.weight", &shape).unwrap();
    assert_eq!(
        theirs.values("model.embed_tokens.weight").unwrap(),
        table.unwrap()
    );
    let name = "blocks.1.feed_forward.up.weight";
    let up = dequantized_values(&ours, name, &[64, 96]).unwrap().unwrap();
    let found = theirs.values("model.layers.1.mlp.up_proj.weight").unwrap();
    for i in 0..64 {
        for j in 0..96 {
            assert_eq!(found[j * 64 + i].to_bits(), up[i * 96 + j].to_bits());
        }
    }
}
