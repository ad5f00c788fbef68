//! Damaged GGUF files: an error message, never a panic, bounded memory.

use std::path::Path;
use std::process::Command;

use nextword_base::rng::RandomSequence;
use nextword_convert::{GgufType, export_gguf, open_gguf};
use nextword_model::ModelDir;
use nextword_model::weights::{dequantized_values, layout};

use crate::gguf_file::RawFile;
use crate::malformed_models::{
    MAX_MESSAGE_LEN, corrupt_bytes, mutation_count, test_rng, with_limited_memory,
};
use crate::test_dir::{BAD_FILE, TestDir};
use crate::util::{nextword, root, stderr};

/// Numbers that counts and lengths are replaced with.
const NUMBERS: [u64; 12] = [
    0,
    1,
    2,
    33,
    255,
    1 << 16,
    1 << 24,
    1 << 31,
    1 << 32,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// Overwrites a few 8-byte numbers of the header.
fn corrupt_numbers(bytes: &mut [u8], rng: &mut RandomSequence) {
    let header = bytes.len().min(6000);
    for _ in 0..=rng.below(2) {
        if header < 16 {
            return;
        }
        let at = 8 + rng.below(header - 15);
        let number = NUMBERS[rng.below(NUMBERS.len())].to_le_bytes();
        let len = [4, 8][rng.below(2)];
        bytes[at..at + len].copy_from_slice(&number[..len]);
    }
}

/// Replaces or duplicates an entry or a tensor as a whole.
fn corrupt_entries(file: &mut RawFile, rng: &mut RandomSequence) {
    let (entry, other) = (rng.below(file.entries.len()), rng.below(file.entries.len()));
    let tensor = rng.below(file.tensors.len());
    match rng.below(8) {
        0 => drop(file.entries.remove(entry)),
        1 => file.entries[entry].1 = file.entries[other].1.clone(),
        2 => file.entries.push(file.entries[entry].clone()),
        3 => corrupt_bytes(&mut file.entries[entry].1, rng),
        4 => drop(file.tensors.remove(tensor)),
        5 => file.tensors[tensor].kind = rng.below(42) as u32,
        6 => {
            let axis = rng.below(file.tensors[tensor].sizes.len());
            file.tensors[tensor].sizes[axis] = NUMBERS[rng.below(NUMBERS.len())];
        }
        _ => file.tensors.push(file.tensors[tensor].clone()),
    }
}

/// Opens `path` and reads all that it has. Returns whether it is valid.
fn attempt(path: &Path) -> bool {
    let model = match open_gguf(path) {
        Ok(model) => model,
        Err(error) => {
            let text = error.to_string();
            assert!(
                !text.is_empty() && text.len() < MAX_MESSAGE_LEN,
                "{} bytes",
                text.len()
            );
            assert!(!text.contains("internal error"), "{text}");
            return false;
        }
    };
    let weights = model.open_weights().unwrap();
    for (name, shape) in layout(&model.config) {
        let len: usize = shape.iter().product();
        if weights.matrix_format(&name).is_some() {
            let matrix = dequantized_values(&*weights, &name, &shape).unwrap();
            assert_eq!(matrix.unwrap().len(), len, "{name}");
        }
        assert_eq!(weights.values(&name).unwrap().len(), len, "{name}");
    }
    let json = model.tokenizer_json().unwrap();
    let Ok(tokenizer) = nextword_data::parse_tokenizer(json, "test") else {
        return false;
    };
    let ids = tokenizer.encode("One day\n naïve </s> 123").ids;
    let in_vocabulary = |id: &u32| (*id as usize) < model.config.vocab_size;
    assert!(ids.iter().all(in_vocabulary));
    let special = &model.card.special;
    assert!(special.eos_ids.iter().all(in_vocabulary));
    assert!(special.prefix().iter().all(in_vocabulary));
    true
}

/// Small files of both kinds of tokenizers.
fn valid_files(dir: &TestDir) -> Vec<RawFile> {
    let path = dir.path("valid.gguf");
    let mut files = Vec::new();
    for (model, dtype) in [("letters", GgufType::Q8_0), ("letters", GgufType::F32)] {
        let model = ModelDir::open(&root().join("docs/models").join(model)).unwrap();
        export_gguf(&model, dtype, &path).unwrap();
        files.push(RawFile::read(&path));
    }
    files.push(crate::gguf_read_tokenizers::sentencepiece_file(dir));
    files.push(crate::gguf_blocks::file_of_all_types(dir));
    for file in &files {
        file.write(&path);
        assert!(attempt(&path), "{:?}", open_gguf(&path).err());
    }
    files
}

fn damage_files() {
    let dir = TestDir::new();
    let files = valid_files(&dir);
    let path = dir.path("damaged.gguf");
    let mut rng = test_rng("gguf");
    let mutations = mutation_count(2000);
    let mut valid = 0;
    for mutation in 0..mutations {
        let file = &files[rng.below(files.len())];
        let mut bytes = if rng.below(3) == 0 {
            let mut file = file.clone();
            corrupt_entries(&mut file, &mut rng);
            file.to_bytes()
        } else {
            let mut bytes = file.to_bytes();
            match rng.below(3) {
                0 => corrupt_numbers(&mut bytes, &mut rng),
                1 => bytes.truncate(rng.below(bytes.len())),
                _ => corrupt_bytes(&mut bytes, &mut rng),
            }
            bytes
        };
        if mutation % 97 == 0 {
            bytes.clear();
        }
        std::fs::write(&path, bytes).unwrap();
        valid += u64::from(attempt(&path));
    }
    println!("{mutations} damaged files: {valid} could be read, the others were rejected");
    assert!(valid > 0 && valid < mutations);
}

/// Many files claim more memory than the process has.
#[test]
fn damaged_gguf_files_give_an_error_message() {
    let name = "gguf_damage::damaged_gguf_files_give_an_error_message";
    with_limited_memory(name, 1, damage_files);
}

#[cfg(target_os = "linux")]
#[test]
fn claimed_sizes_of_gguf_files_allocate_nothing() {
    let dir = TestDir::new();
    let valid = valid_files(&dir).remove(0).to_bytes();
    let path = dir.path("claims.gguf");
    let number = |at: usize, number: u64| {
        let mut bytes = valid.clone();
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    // The number of tensors, of entries, and the length of the first key.
    let mut claims: Vec<Vec<u8>> = Vec::new();
    for at in [8, 16, 24] {
        claims.extend([1 << 30, 1 << 34, u64::MAX].map(|claim| number(at, claim)));
    }
    // Lists with many items, also of lists.
    for (kind, count) in [
        (8_u32, 1_u64 << 31),
        (4, 1 << 33),
        (12, 1 << 61),
        (9, 1 << 20),
    ] {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(b"k\x09\0\0\0");
        bytes.extend(kind.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.resize(1 << 16, 0);
        claims.push(bytes);
    }
    for (number, bytes) in claims.into_iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        let program = nextword();
        let output = Command::new("sh")
            .args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh"])
            .arg(program.get_program())
            .arg("inspect")
            .arg(&path)
            .output()
            .unwrap();
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(BAD_FILE), "{number}: {error}");
        assert!(
            error.contains("is not a valid GGUF file"),
            "{number}: {error}"
        );
        assert!(error.len() < 1000, "{error}");
    }
}

#[test]
fn overlapping_and_misplaced_tensors_are_rejected() {
    let dir = TestDir::new();
    let valid = valid_files(&dir).remove(1);
    let path = dir.path("changed.gguf");
    let error = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        open_gguf(&path).unwrap_err().to_string()
    };
    let bytes = valid.to_bytes();
    // The offset of a tensor is the last number of its entry.
    let name = valid.tensors[1].name.as_bytes();
    let entry = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    let at = entry + name.len() + 4 + 8 * valid.tensors[1].sizes.len() + 4;
    let with_offset = |offset: u64| {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        error(&bytes)
    };
    assert!(with_offset(0).contains("overlap"), "{}", with_offset(0));
    assert!(
        with_offset(33).contains("not a multiple of 32"),
        "{}",
        with_offset(33)
    );
    for beyond in [1 << 40, u64::MAX - 31] {
        assert!(
            with_offset(beyond).contains("ends after the file"),
            "{}",
            with_offset(beyond)
        );
    }
    let cut = error(&bytes[..bytes.len() - 1]);
    assert!(
        cut.contains("ends after the file") && cut.contains("download"),
        "{cut}"
    );
    let mut twice = valid.clone();
    twice.tensors.push(twice.tensors[0].clone());
    let twice = error(&twice.to_bytes());
    assert!(twice.contains("two tensors `"), "{twice}");
    let mut twice = valid.clone();
    twice.entries.push(twice.entries[0].clone());
    let twice = error(&twice.to_bytes());
    assert!(
        twice.contains("the metadata key `general.architecture` twice"),
        "{twice}"
    );
    assert!(error(b"version https://git-lfs.github.com/spec/v1\noid sha256:1").contains("Git LFS"));
}
