//! Every displayed value of StatQuest's model, recomputed here from its weights in f64.
//!
//! A displayed value may differ by half a unit of its last decimal, plus a millionth of the tensor's
//! largest value, or of 1 if that is larger. The model computes in f32, whose spacing near 41, its
//! largest logit, is 3.8e-6.

use std::collections::BTreeMap;

use nextword_model::weights::{NamedTensors, load_tensors};
use serde_json::Value;

use crate::util::{nextword, root, stderr};

const CLOSE: f64 = 1e-6;
const MODEL: &str = "docs/models/statquest";
const PROMPTS: [&str; 2] = ["what is statquest", "statquest is what"];

/// A tensor of one head, row by row.
type Rows = Vec<Vec<f64>>;

/// StatQuest's forward pass in plain loops.
struct ForwardPass {
    tensors: BTreeMap<&'static str, Rows>,
    head: Rows,
    bias: Vec<f64>,
}

fn matrix(weights: &NamedTensors, name: &str) -> Rows {
    let (shape, values) = &weights[name];
    let width = shape.last().copied().unwrap();
    let rows = values.chunks_exact(width);
    rows.map(|row| row.iter().copied().map(f64::from).collect())
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// `x W`.
fn product(x: &[f64], w: &[Vec<f64>]) -> Vec<f64> {
    let column = |j: usize| x.iter().zip(w).map(|(x, w)| x * w[j]).sum();
    (0..w[0].len()).map(column).collect()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let sum: f64 = x.iter().map(|x| x.exp()).sum();
    x.iter().map(|x| x.exp() / sum).collect()
}

impl ForwardPass {
    fn new(weights: &NamedTensors, ids: &[usize]) -> Self {
        let table = matrix(weights, "token_embedding.weight");
        let embed: Rows = ids.iter().map(|id| table[*id].clone()).collect();
        let position = |p: usize| vec![(p as f64).sin(), (p as f64).cos()];
        let positions: Rows = (0..ids.len()).map(position).collect();
        let x: Rows = embed
            .iter()
            .zip(&positions)
            .map(|(a, b)| add(a, b))
            .collect();
        let project = |name: &str| -> Rows {
            let w = matrix(weights, &format!("blocks.0.attention.{name}.weight"));
            x.iter().map(|x| product(x, &w)).collect()
        };
        let (q, k, v) = (project("query"), project("key"), project("value"));
        let row = |i: usize| (0..=i).map(|j| dot(&q[i], &k[j]) / 2_f64.sqrt()).collect();
        let scores: Rows = (0..ids.len()).map(row).collect();
        let pattern: Rows = scores.iter().map(|row| softmax(row)).collect();
        let z: Rows = pattern.iter().map(|row| product(row, &v)).collect();
        let sum: Rows = x.iter().zip(&z).map(|(a, b)| add(a, b)).collect();
        let head = matrix(weights, "head.weight");
        let bias = matrix(weights, "head.bias").remove(0);
        let logits: Rows = sum.iter().map(|x| add(&product(x, &head), &bias)).collect();
        let probabilities = logits.iter().map(|row| softmax(row)).collect();
        let tensors = [
            ("hook_embed", embed),
            ("hook_pos_embed", positions),
            ("blocks.0.hook_resid_pre", x),
            ("blocks.0.attn.hook_q", q),
            ("blocks.0.attn.hook_k", k),
            ("blocks.0.attn.hook_v", v),
            ("blocks.0.attn.hook_attn_scores", scores),
            ("blocks.0.attn.hook_pattern", pattern),
            ("blocks.0.hook_attn_out", z.clone()),
            ("blocks.0.attn.hook_z", z),
            ("blocks.0.hook_resid_post", sum),
            ("logits", logits),
            ("probabilities", probabilities),
        ];
        Self {
            tensors: tensors.into_iter().collect(),
            head,
            bias,
        }
    }

    /// Tolerance for a value of `name`.
    fn allowed(&self, name: &str) -> f64 {
        let values = self.tensors[name].iter().flatten();
        CLOSE * values.fold(1.0_f64, |max, x| max.max(x.abs()))
    }

    /// The values that the terminal shows for a step, line by line.
    fn lines(&self, name: &str) -> Rows {
        let tensor = |name: &str| self.tensors[name].clone();
        let sums = |a: &str, b: &str| {
            let rows = tensor(a).into_iter().zip(tensor(b)).zip(tensor(name));
            rows.map(|((a, b), sum)| [a, b, sum].concat()).collect()
        };
        let percent = |row: &Vec<f64>| row.iter().map(|p| 100.0 * p).collect::<Vec<f64>>();
        match name {
            "blocks.0.hook_resid_pre" => sums("hook_embed", "hook_pos_embed"),
            "blocks.0.hook_resid_post" => sums("blocks.0.hook_resid_pre", "blocks.0.attn.hook_z"),
            "blocks.0.attn.hook_pattern" => {
                let rows = tensor(name).into_iter();
                rows.map(|row| [percent(&row), vec![100.0]].concat())
                    .collect()
            }
            "blocks.0.attn.hook_z" => {
                let weights = tensor("blocks.0.attn.hook_pattern").pop().unwrap();
                let weighted = weights.into_iter().zip(tensor("blocks.0.attn.hook_v"));
                let weighted = weighted.map(|(weight, v)| [vec![100.0 * weight], v].concat());
                tensor(name).into_iter().chain(weighted).collect()
            }
            _ => tensor(name),
        }
    }

    /// Probabilities after each token, the most likely first, and the surprisal of the next one.
    fn predictions(&self, next: &[usize]) -> Rows {
        let probabilities = self.tensors["probabilities"].iter().zip(next);
        let line = |(probabilities, next): (&Vec<f64>, &usize)| {
            let mut sorted: Vec<f64> = probabilities.iter().map(|p| 100.0 * p).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            [sorted, vec![-probabilities[*next].log2()]].concat()
        };
        probabilities.map(line).collect()
    }

    /// The logit lens: the output layer applied to the residual stream at `position`, before and after
    /// the block.
    fn lens(&self, position: usize) -> Rows {
        let read = |name: &str| {
            let logit = |(id, bias): (usize, &f64)| {
                let column: Vec<f64> = self.head.iter().map(|row| row[id]).collect();
                dot(&self.tensors[name][position], &column) + bias
            };
            let logits: Vec<f64> = self.bias.iter().enumerate().map(logit).collect();
            let mut probabilities: Vec<f64> = softmax(&logits).iter().map(|p| 100.0 * p).collect();
            probabilities.sort_by(|a, b| b.total_cmp(a));
            probabilities
        };
        let after = read("blocks.0.hook_resid_post");
        vec![read("blocks.0.hook_resid_pre"), [vec![1.0], after].concat()] // Block 1.
    }

    /// Logit and probability of each candidate after `position`, the most likely first.
    fn candidates(&self, position: usize) -> Rows {
        let logits = self.tensors["logits"][position].iter();
        let probabilities = self.tensors["probabilities"][position].iter();
        let mut lines: Rows = logits
            .zip(probabilities)
            .map(|(x, p)| vec![*x, 100.0 * p])
            .collect();
        lines.sort_by(|a, b| b[0].total_cmp(&a[0]));
        lines
    }

    /// Contributions to the logit of `id` after `position`, the largest first, then their sum.
    fn contributions(&self, position: usize, id: usize) -> Rows {
        let column: Vec<f64> = self.head.iter().map(|row| row[id]).collect();
        let contribution = |name: &str| dot(&self.tensors[name][position], &column);
        let head = vec![1.0, 1.0, contribution("blocks.0.attn.hook_z")]; // Head 1 of layer 1.
        let others = [
            contribution("hook_embed"),
            contribution("hook_pos_embed"),
            self.bias[id],
        ];
        let mut parts: Rows = others
            .map(|part| vec![part])
            .into_iter()
            .chain([head])
            .collect();
        let size = |part: &Vec<f64>| part.last().copied().unwrap_or(0.0).abs();
        parts.sort_by(|a, b| size(b).total_cmp(&size(a)));
        let logit = self.tensors["logits"][position][id];
        parts.into_iter().chain([vec![logit, logit]]).collect()
    }
}

/// The numbers in a line as text, and whether each is a percentage.
fn numbers(line: &str) -> Vec<(&str, bool)> {
    let words: Vec<&str> = line
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| "()[],:;".contains(c)))
        .collect();
    let values = words.iter().enumerate();
    let values = values.filter(|(_, word)| word.parse::<f64>().is_ok());
    values
        .map(|(at, word)| (*word, words.get(at + 1) == Some(&"%")))
        .collect()
}

/// Compares `line` with `exact`, number by number; returns their count.
fn check_line(line: &str, exact: &[f64], allowed: f64) -> usize {
    let shown = numbers(line);
    assert_eq!(shown.len(), exact.len(), "{line}: {exact:?}");
    for ((text, is_percent), exact) in shown.iter().zip(exact) {
        let decimals = text.split_once('.').map_or(0, |(_, after)| after.len());
        let half = 0.5 * 0.1_f64.powi(i32::try_from(decimals).unwrap());
        let difference = (text.parse::<f64>().unwrap() - exact).abs();
        let allowed = if *is_percent { 100.0 * CLOSE } else { allowed };
        assert!(difference <= half + allowed, "{line}: {text} is {exact}");
    }
    shown.len()
}

/// Compares all lines that contain numbers with `exact`.
fn check_lines<'l>(
    lines: &mut impl Iterator<Item = &'l str>,
    exact: &[Vec<f64>],
    allowed: f64,
) -> usize {
    let mut with_numbers = lines.filter(|line| !numbers(line).is_empty());
    let checked = exact.iter().map(|exact| {
        let line = with_numbers.next().unwrap();
        check_line(line, exact, allowed)
    });
    checked.sum()
}

fn explain(prompt: &str, options: &[&str]) -> String {
    let output = nextword()
        .args(["explain", MODEL, prompt, "--width", "400"])
        .args(options)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Checks every value of every tensor of `report`; returns their count.
fn check_report(report: &Value, pass: &ForwardPass) -> usize {
    let mut checked = 0;
    for (name, tensor) in report["tensors"].as_object().unwrap() {
        let exact = &pass.tensors[name.as_str()];
        let width = tensor["shape"].as_array().unwrap().last().unwrap();
        let data = tensor["data"].as_array().unwrap();
        let rows = data.chunks(usize::try_from(width.as_u64().unwrap()).unwrap());
        assert_eq!(rows.len(), exact.len(), "{name}");
        for (row, exact) in rows.zip(exact) {
            let shown: Vec<f64> = row.iter().filter_map(Value::as_f64).collect();
            assert_eq!(shown.len(), exact.len(), "{name}: masked values are null");
            for (shown, exact) in shown.iter().zip(exact) {
                let difference = (shown - exact).abs();
                assert!(difference <= pass.allowed(name), "{name}: {shown}, {exact}");
                checked += 1;
            }
        }
    }
    assert_eq!(
        report["tensors"].as_object().unwrap().len(),
        pass.tensors.len()
    );
    checked
}

/// The 32-bit floats of a page, five digits of base 85 each.
fn unpacked(text: &str) -> Vec<f32> {
    const DIGITS: &str =
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%()*+,-.:;=?@[]^_{}~";
    let digit = |c: &u8| DIGITS.bytes().position(|digit| digit == *c).unwrap() as u32;
    let bits = text.as_bytes().chunks(5);
    bits.map(|five| f32::from_bits(five.iter().fold(0, |sum, c| sum * 85 + digit(c))))
        .collect()
}

#[test]
fn every_displayed_statquest_value_is_recomputed() {
    let weights = load_tensors(&root().join(MODEL).join("model.safetensors")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for prompt in PROMPTS {
        let json: Value = serde_json::from_str(&explain(prompt, &["--format", "json"])).unwrap();
        let index = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
        let tokens = json["tokens"].as_array().unwrap();
        let ids: Vec<usize> = tokens.iter().map(|token| index(&token["id"])).collect();
        let completion = json["answer"].as_array().unwrap();
        let completion_ids: Vec<usize> = completion
            .iter()
            .map(|a| index(&a["token"]["id"]))
            .collect();
        let pass = ForwardPass::new(&weights, &ids);
        assert!(check_report(&json, &pass) > 150);

        let file = folder.path().join("page.html").display().to_string();
        explain(prompt, &["--format", "html", "--out", &file]);
        let html = std::fs::read_to_string(file).unwrap();
        let data = &html[html.find("{\"panes\":").unwrap()..];
        let page = serde_json::Deserializer::from_str(data).into_iter::<Value>();
        let page = page.take(1).next().unwrap().unwrap();
        let packed = page["panes"][0]["packed_tensors"].as_object().unwrap();
        assert_eq!(packed.len(), json["tensors"].as_object().unwrap().len());
        for (name, tensor) in packed {
            let expected = &json["tensors"][name];
            assert_eq!(tensor["shape"], expected["shape"], "{name}");
            let values = unpacked(tensor["base85"].as_str().unwrap());
            for (value, expected) in values.iter().zip(expected["data"].as_array().unwrap()) {
                let equal = match expected.as_f64() {
                    Some(expected) => value.to_bits() == (expected as f32).to_bits(),
                    None => value.is_nan(),
                };
                assert!(equal, "{name}: {value} instead of {expected}");
            }
        }

        for decimals in ["2", "9"] {
            let text = explain(prompt, &["--decimals", decimals, "--names"]);
            let (head, tail) = text.split_once("    next-token probabilities").unwrap();
            let mut checked = 0;
            // A step is a title, a formula with the tensor's name, and the values.
            for step in head.trim_end().split("\n\n").skip(1) {
                let mut lines = step.lines().skip(1);
                let name = lines.next().unwrap().split_whitespace().last().unwrap();
                checked += check_lines(&mut lines, &pass.lines(name), pass.allowed(name));
                assert!(lines.all(|line| numbers(line).is_empty()), "{name}: {step}");
            }
            assert!(checked > 150, "{checked} numbers in {head}");
            let next_ids: Vec<usize> = ids[1..]
                .iter()
                .chain(completion_ids.last())
                .copied()
                .collect();
            let mut parts = tail.split("\n\n");
            let (predictions, logits) = (pass.predictions(&next_ids), pass.allowed("logits"));
            checked = check_lines(&mut parts.next().unwrap().lines(), &predictions, CLOSE);
            let prompt_length = ids.len() + 1 - completion_ids.len();
            let after = prompt_length - 1;
            let lens_lines = &mut parts.next().unwrap().lines().skip(1);
            checked += check_lines(lens_lines, &pass.lens(after), CLOSE);
            for (step, id) in completion_ids.iter().enumerate() {
                // Skips the title, the line about the cache and the temperature.
                let mut lines = parts.next().unwrap().lines().skip(3);
                checked += check_lines(&mut lines, &pass.candidates(after + step), logits);
                let mut lines = parts.next().unwrap().lines().skip(1);
                checked += check_lines(&mut lines, &pass.contributions(after + step, *id), logits);
            }
            let training = parts.next().unwrap();
            assert!(training.contains("one training step"), "{tail}");
            assert!(parts.next().is_none(), "{tail}");
            assert!(checked > 50, "{checked} numbers in {tail}");
        }
    }
}
