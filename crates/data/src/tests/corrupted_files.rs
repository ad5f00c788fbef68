use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::rng::RandomSequence;
use crate::shard::header_checksum;
use crate::tests::{random, random_text};
use crate::*;

/// Creates a prepared folder of about 1,500 tokens; also returns the paths and bytes of its files.
fn prepared(kind: TokenizerKind) -> (tempfile::TempDir, Vec<(PathBuf, Vec<u8>)>) {
    let folder = tempfile::tempdir().unwrap();
    let text: String = Stories::new(9, 2).iter().collect();
    let path = folder.path().join("text.txt");
    std::fs::write(&path, text.replace('.', ".%")).unwrap();
    let mut config = DataConfig {
        path: Some(path),
        separator: Some("%".to_owned()),
        ..DataConfig::default()
    };
    config.tokenizer.kind = kind;
    let output = folder.path().join("out");
    prepare(&config, &output, |_| {}).unwrap();
    let files = [
        "train.bin",
        "validation.bin",
        "dataset.json",
        "tokenizer.json",
    ]
    .map(|name| output.join(name))
    .map(|path| (path.clone(), std::fs::read(path).unwrap()));
    (folder, files.into())
}

/// Truncates, extends, changes, removes, inserts or rotates some bytes.
fn damage(bytes: &mut Vec<u8>, random: &mut RandomSequence) {
    let start = random.below(bytes.len());
    // Half of the positions are in the first 160 bytes, since headers are short.
    let start = if random.below(2) == 0 {
        start.min(random.below(160))
    } else {
        start
    };
    let end = (start + 1 + random.below(40)).min(bytes.len());
    match random.below(7) {
        0 => bytes.truncate(start),
        1 => bytes[start] ^= 1 << random.below(8),
        2 => bytes[start..end].fill([0, 0xFF, b'9', b'"'][random.below(4)]),
        3 => bytes.extend((0..=random.below(20)).map(|i| i as u8)),
        4 => drop(bytes.drain(start..end)),
        5 => bytes.splice(start..start, *b"[{\"\\u0000").for_each(drop),
        _ => bytes.rotate_left(start),
    }
}

/// Uses a dataset in every way: success and errors are both fine, panics and endless loops are not.
fn use_all(data: &Dataset) -> Result<(), DataError> {
    for tokens in [&data.train, &data.validation] {
        let mut ids = Vec::new();
        let read = tokens.read(0..tokens.len(), &mut ids);
        assert!(tokens.read(0..tokens.len() + 1, &mut ids).is_err());
        let starts: Vec<usize> = tokens.document_starts().collect();
        assert!(starts.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(starts.iter().all(|&start| start < tokens.len()));
        read?;
        assert!(
            ids.iter()
                .all(|&id| (id as usize) < data.tokenizer.vocab_size())
        );
        use_tokenizer(&data.tokenizer, &ids);
    }
    Ok(())
}

fn use_tokenizer(tokenizer: &Arc<dyn Tokenizer>, ids: &[u32]) {
    let ids = &ids[..ids.len().min(50)];
    let mut stream = DecodeStream::new(tokenizer.clone());
    for &id in ids.iter().chain(&[0, 1, 255, 70_000, u32::MAX]) {
        stream.push(id);
        let (entry, text) = (tokenizer.id_to_token(id), tokenizer.token_text(id));
        assert_eq!(entry.is_some(), text.is_some());
        tokenizer.token_bytes(id);
    }
    stream.finish();
    tokenizer.decode(ids);
    for text in ["", "One day, the \u{0} é🙂 <EOS>", "aaaa"] {
        let found = tokenizer.encode(text).ids;
        assert!(
            found
                .iter()
                .all(|&id| (id as usize) < tokenizer.vocab_size())
        );
    }
}

/// Asserts that an error is one sentence, of class `Data`, and names the file.
pub(super) fn assert_clear(error: &DataError, path: &Path) {
    let message = error.to_string();
    assert_eq!(error.class(), ErrorClass::Data, "{message}");
    assert!(message.contains(&path.display().to_string()), "{message}");
    assert!(message.len() < 1000 && !message.contains('\n'), "{message}");
    assert!(!message.contains("called `"), "{message}");
}

#[test]
fn corrupted_prepared_file_gives_clear_error_or_valid_data() {
    for kind in [TokenizerKind::Char, TokenizerKind::Word, TokenizerKind::Bpe] {
        let (_folder, files) = prepared(kind);
        let folder = files[0].0.parent().unwrap();
        let mut random = random(kind as u64);
        let mut errors = 0;
        for round in 0..240 {
            let (path, bytes) = &files[round % files.len()];
            let mut changed = bytes.clone();
            for _ in 0..=random.below(2) {
                damage(&mut changed, &mut random);
                changed.push(b' '); // never empty: tested elsewhere
            }
            std::fs::write(path, &changed).unwrap();
            let opened = Dataset::open(folder, &TokenizerConfig::default());
            match opened.and_then(|data| use_all(&data)) {
                Ok(()) => {}
                // A changed vocabulary or card is detected when it does not match a token file.
                Err(error) if round % files.len() >= 2 => {
                    errors += 1;
                    let message = error.to_string();
                    let named = [path, &files[0].0, &files[1].0].map(|p| p.display().to_string());
                    let named = named.iter().find(|name| message.contains(*name)).unwrap();
                    assert_clear(&error, Path::new(named));
                }
                Err(error) => {
                    errors += 1;
                    assert_clear(&error, path);
                }
            }
            std::fs::write(path, bytes).unwrap();
        }
        assert!(errors > 180, "{errors} of 240 were detected");
        Dataset::open(folder, &TokenizerConfig::default()).unwrap();
    }
}

#[test]
fn every_changed_shard_byte_is_detected() {
    let (_folder, files) = prepared(TokenizerKind::Char);
    let (path, bytes) = &files[1];
    let mut random = random(5);
    let positions = (0..128).chain((0..200).map(|_| random.below(bytes.len())));
    for position in positions.collect::<Vec<_>>() {
        let mut changed = bytes.clone();
        changed[position] ^= 1 << random.below(8);
        std::fs::write(path, &changed).unwrap();
        let error = match Shard::open(path) {
            Ok(shard) => shard.verify().unwrap_err(),
            Err(error) => error,
        };
        assert_clear(&error, path);
        assert!(
            position >= 128 || Shard::open(path).is_err(),
            "byte {position} of the header"
        );
    }
    for length in (0..bytes.len()).step_by(7) {
        std::fs::write(path, &bytes[..length]).unwrap();
        assert_clear(&Shard::open(path).unwrap_err(), path);
    }
}

#[test]
fn forged_headers_never_read_out_of_bounds() {
    let (_folder, files) = prepared(TokenizerKind::Char);
    let (path, bytes) = &files[0];
    let mut random = random(6);
    let odd = [
        0,
        1,
        2,
        3,
        4,
        5,
        128,
        1 << 16,
        1 << 31,
        1 << 61,
        u64::MAX / 2,
        u64::MAX - 7,
        u64::MAX,
    ];
    let mut opened = 0;
    for _ in 0..400 {
        let mut changed = bytes.clone();
        for _ in 0..=random.below(3) {
            let (field, value) = (random.below(5), odd[random.below(odd.len())]);
            let value = value.wrapping_add(random.below(2) as u64);
            match field {
                0 => changed[12..16].copy_from_slice(&(value as u32).to_le_bytes()),
                4 => {
                    let entry = changed.len() - 8 * (1 + random.below(10));
                    changed[entry..entry + 8].copy_from_slice(&value.to_le_bytes());
                }
                _ => changed[8 + 8 * field..16 + 8 * field].copy_from_slice(&value.to_le_bytes()),
            }
        }
        if random.below(4) == 0 {
            changed.truncate(128 + 8 * random.below(8));
        }
        let check = header_checksum(&changed[..128]);
        changed[104..128].copy_from_slice(&check);
        std::fs::write(path, &changed).unwrap();
        let Ok(tokens) = Tokens::open(path).inspect_err(|error| assert_clear(error, path)) else {
            continue;
        };
        opened += 1;
        let mut ids = Vec::new();
        let vocab_size = Shard::open(path).unwrap().vocab_size();
        match tokens.read(0..tokens.len(), &mut ids) {
            Ok(()) => assert!(ids.iter().all(|&id| (id as usize) < vocab_size)),
            Err(error) => assert_clear(&error, path),
        }
        for index in [0, 1, tokens.document_count(), usize::MAX - 1] {
            assert!(tokens.document(index).end <= tokens.len());
        }
    }
    assert!(opened > 20, "{opened} of 400 opened");
}

#[test]
fn random_text_as_tokenizer_or_card_is_an_error() {
    let (_folder, files) = prepared(TokenizerKind::Byte);
    let mut random = random(8);
    for round in 0..100 {
        let (path, bytes) = &files[2 + round % 2];
        let text = ["{", "[", "\"", "", "null", "{\"version\": "][random.below(6)];
        std::fs::write(path, format!("{text}{}", random_text(&mut random))).unwrap();
        let error = Dataset::open(path.parent().unwrap(), &TokenizerConfig::default()).unwrap_err();
        assert_clear(&error, path);
        std::fs::write(path, bytes).unwrap();
    }
}
