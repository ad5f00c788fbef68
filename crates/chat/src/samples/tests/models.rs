//! Chat templates of the kinds that models have, with their tokenizers.

use std::sync::Arc;

use nextword_data::Tokenizer;

use super::tokenizers::{byte_level, sentence_piece};
use crate::{BuiltinTemplate, ChatTemplate, Json, SampleEncoder, SampleTokens, TrainOn};

/// A chat model without its weights.
pub(super) struct ChatModel {
    pub(super) name: &'static str,
    source: String,
    bos: &'static str,
    eos: &'static str,
    /// Further tokens that end a completion.
    more_eos: &'static [&'static str],
    pub(super) tokenizer: Arc<dyn Tokenizer>,
    pub(super) variables: Vec<(String, Json)>,
    /// Whether the template formats a system message.
    pub(super) takes_system: bool,
}

impl ChatModel {
    pub(super) fn encoder(&self, train_on: TrainOn) -> SampleEncoder {
        let template = ChatTemplate::from_source(&self.source, self.bos, self.eos).unwrap();
        let eos = [self.eos].into_iter().chain(self.more_eos.iter().copied());
        let id = |text: &str| match self.tokenizer.encode(text).ids[..] {
            [id] => id,
            _ => panic!("{text} is not a token of {}", self.name),
        };
        let tokens = SampleTokens {
            eos: eos.map(id).collect(),
            ..SampleTokens::default()
        };
        SampleEncoder::new(self.tokenizer.clone(), tokens)
            .with_chat_template(template)
            .with_variables(self.variables.clone())
            .with_train_on(train_on)
    }
}

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
const MARKED: &str = "{%- for m in messages %}\n{{- '<|im_start|>' + m.role + '\\n' }}\n\
    {%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n\
    {{- '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
const LLAMA_2: &str = "{% for m in messages %}{% if m.role == 'system' %}{{ bos_token + '<<SYS>>' + m.content + '<</SYS>>' }}\
    {% elif m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}\
    {% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";
const LLAMA_3: &str = "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + \
    m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";
const MISTRAL: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}\
    {% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('Only user and assistant \
    roles are supported!') }}{% endif %}{% endfor %}";
const GEMMA: &str = "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}\
    {% endif %}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}{{ '<start_of_turn>' + \
    role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<start_of_turn>model\\n' }}{% endif %}";
const QWEN_2_5: &str = "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + \
    '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{%- endif %}{%- for m in messages %}\
    {%- if m.role != 'system' %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endif %}\
    {%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
const QWEN_3: &str = "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = \
    loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' %}\
    {%- set content = m.content %}{%- set reasoning = '' %}{%- if '</think>' in content %}\
    {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{{- '<|im_start|>assistant\\n' }}\
    {%- if loop.index0 > ns.last and (loop.last or reasoning) %}{{- '<think>\\n' + reasoning.strip('\\n') + \
    '\\n</think>\\n\\n' + content.lstrip('\\n') }}{%- else %}{{- content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- else %}\
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}\
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is \
    false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}";
const ZEPHYR: &str = "{% for m in messages %}\n{{ '<|' + m.role + '|>\\n' + m.content + eos_token }}\n{% if loop.last and \
    add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}";
const PHI_3: &str = "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}";
const DEEPSEEK: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == \
    'user' %}{{ '<｜User｜>' + m.content }}{% else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}\
    {% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}";
const SMOLLM: &str = "{% for m in messages %}{% if loop.first and messages[0].role != 'system' %}\
    {{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + m.role + \
    '\\n' + m.content + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
    {% endif %}";
/// Closes only the last message.
const OPEN_TURNS: &str = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if loop.last and not add_generation_prompt \
    %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

/// All of them.
#[allow(clippy::too_many_lines)] // A table.
pub(super) fn models() -> Vec<ChatModel> {
    let chatml = || byte_level(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"], false);
    let qwen = || byte_level(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"], true);
    let model = |name, source: &str, bos, eos, tokenizer| ChatModel {
        name,
        source: source.to_owned(),
        bos,
        eos,
        more_eos: &[],
        tokenizer,
        variables: Vec::new(),
        takes_system: true,
    };
    let without_thinking = vec![("enable_thinking".to_owned(), Json::Bool(false))];
    let llama_3 = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ];
    let phi = [
        "<|user|>",
        "<|assistant|>",
        "<|system|>",
        "<|end|>",
        "<|endoftext|>",
    ];
    let gemma = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"];
    let deepseek = [
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
    ];
    let plain = BuiltinTemplate::Plain.source(false);
    let begun = BuiltinTemplate::Plain.source(true);
    vec![
        model("chatml", CHATML, "", "<|im_end|>", chatml()),
        model("marked", MARKED, "", "<|im_end|>", qwen()),
        model(
            "builtin chatml",
            &BuiltinTemplate::ChatMl.source(false),
            "",
            "<|im_end|>",
            qwen(),
        ),
        model(
            "llama2",
            LLAMA_2,
            "<s>",
            "</s>",
            sentence_piece(&["<s>", "</s>"], false),
        ),
        model(
            "llama3",
            LLAMA_3,
            "<|begin_of_text|>",
            "<|eot_id|>",
            byte_level(&llama_3, true),
        ),
        model(
            "llama3 with another division",
            LLAMA_3,
            "<|begin_of_text|>",
            "<|eot_id|>",
            byte_level(&llama_3, false),
        ),
        ChatModel {
            takes_system: false,
            ..model(
                "mistral",
                MISTRAL,
                "<s>",
                "</s>",
                sentence_piece(&["<s>", "</s>"], false),
            )
        },
        ChatModel {
            takes_system: false,
            more_eos: &["<end_of_turn>"],
            ..model(
                "gemma",
                GEMMA,
                "<bos>",
                "<eos>",
                sentence_piece(&gemma, false),
            )
        },
        model("qwen2.5", QWEN_2_5, "", "<|im_end|>", qwen()),
        model("qwen3", QWEN_3, "", "<|im_end|>", qwen()),
        ChatModel {
            variables: without_thinking,
            ..model("qwen3 without thinking", QWEN_3, "", "<|im_end|>", qwen())
        },
        model(
            "zephyr",
            ZEPHYR,
            "<s>",
            "</s>",
            sentence_piece(&["<s>", "</s>"], false),
        ),
        ChatModel {
            more_eos: &["<|end|>"],
            ..model(
                "phi3",
                PHI_3,
                "",
                "<|endoftext|>",
                sentence_piece(&phi, true),
            )
        },
        model(
            "deepseek",
            DEEPSEEK,
            deepseek[0],
            deepseek[1],
            byte_level(&deepseek, true),
        ),
        model("smollm", SMOLLM, "<|im_start|>", "<|im_end|>", chatml()),
        model("plain", &plain, "", "<|endoftext|>", chatml()),
        model(
            "plain with bos",
            &begun,
            "<s>",
            "</s>",
            sentence_piece(&["<s>", "</s>"], false),
        ),
        model("open turns", OPEN_TURNS, "", "<|endoftext|>", chatml()),
    ]
}
