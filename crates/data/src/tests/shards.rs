//! Token files in our format and in external formats.

use crate::tests::corrupted_files::assert_clear;
use crate::tests::{ids, open, random};
use crate::*;

#[test]
fn shards_of_both_widths_round_trip_ids() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.bin");
    let mut random = random(3);
    for vocab_size in [1usize, 300, 65_536, 65_537, 1 << 24] {
        let documents: Vec<Vec<u32>> = (0..20)
            .map(|_| {
                (0..=random.below(5000))
                    .map(|_| random.below(vocab_size) as u32)
                    .collect()
            })
            .collect();
        let all = documents.concat();
        let tail = folder.path().join("y.bin");
        for split in [
            None,
            Some(0),
            Some(documents[0].len()),
            Some(random.below(all.len())),
            Some(all.len()),
        ] {
            let mut writer = ShardWriter::create(&path, vocab_size, &"ab".repeat(32)).unwrap();
            for document in &documents {
                writer.start_document().unwrap();
                writer.push(document).unwrap();
            }
            match split {
                None => writer.finish().unwrap(),
                Some(head_len) => writer.finish_split(head_len as u64, &tail).unwrap(),
            }
            let shard = Shard::open(&path).unwrap();
            shard.verify().unwrap();
            assert_eq!(
                (shard.vocab_size(), shard.vocab_hash()),
                (vocab_size, Some(&*"ab".repeat(32)))
            );
            let width = if vocab_size <= 65_536 { 2 } else { 4 };
            let table = (128 + shard.len() * width).next_multiple_of(8);
            let size = std::fs::metadata(&path).unwrap().len() as usize;
            assert_eq!(size, table + 8 * shard.document_count());
            let mut found = ids(&Tokens::from_shard(shard));
            assert_eq!(found.len(), split.unwrap_or(all.len()));
            if split.is_some() {
                Shard::open(&tail).unwrap().verify().unwrap();
                found.extend(ids(&Tokens::open(&tail).unwrap()));
            }
            assert!(found == all, "{vocab_size} {split:?}");
        }
        let mut writer = ShardWriter::create(&path, vocab_size, &"ab".repeat(32)).unwrap();
        let error = writer
            .push(&[0, vocab_size as u32])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("x.bin") && error.contains("is not below"),
            "{error}"
        );
    }
    assert!(ShardWriter::create(&path, 5, "no hash").is_err());
}

/// An llm.c file: a header of 256 integers, of which the first three are used.
fn llm_c(magic: u32, version: u32, count: usize, body: &[u8]) -> Vec<u8> {
    let mut header = [0u32; 256];
    header[..3].copy_from_slice(&[magic, version, count as u32]);
    [header.map(u32::to_le_bytes).concat(), body.to_vec()].concat()
}

#[test]
fn nanogpt_and_llm_c_files_can_be_read() {
    let mut random = random(4);
    let sampled: Vec<u16> = (0..1000).map(|_| random.below(257) as u16).collect();
    let raw: Vec<u8> = sampled.iter().flat_map(|id| id.to_le_bytes()).collect();
    let wide: Vec<u8> = sampled
        .iter()
        .flat_map(|&id| u32::from(id).to_le_bytes())
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let tokenizer = TokenizerConfig {
        kind: TokenizerKind::Byte,
        ..TokenizerConfig::default()
    };
    let byte = build_tokenizer(&tokenizer, std::iter::empty()).unwrap();
    std::fs::write(file("byte.json"), byte.to_json().unwrap()).unwrap();
    let named = TokenizerConfig {
        file: Some(file("byte.json")),
        ..TokenizerConfig::default()
    };
    let contents = [
        raw.clone(),
        llm_c(20_240_520, 1, 1000, &raw),
        llm_c(20_240_801, 7, 1000, &wide),
    ];
    for bytes in &contents {
        std::fs::write(file("shakespeare_train.bin"), bytes).unwrap();
        std::fs::write(file("shakespeare_val.bin"), &raw).unwrap();
        let data = Dataset::open(folder.path(), &named).unwrap();
        let expected: Vec<u32> = sampled.iter().map(|&id| u32::from(id)).collect();
        assert_eq!(
            (ids(&data.train), ids(&data.validation)),
            (expected.clone(), expected)
        );
        assert_eq!(
            (data.train.document_count(), data.train.document(0)),
            (1, 0..1000)
        );
        assert!(data.card.is_none() && data.tokenizer.vocab_size() == 257);
    }
    let without = open(folder.path()).unwrap_err().to_string();
    assert!(
        without.contains("no tokenizer.json; hint: set data.tokenizer.file"),
        "{without}"
    );
    std::fs::rename(file("byte.json"), file("tokenizer.json")).unwrap();
    assert_eq!(open(folder.path()).unwrap().train.len(), 1000);
    std::fs::write(file("shakespeare_train.bin"), 257u16.to_le_bytes()).unwrap();
    let outside = open(folder.path())
        .unwrap()
        .train
        .read(0..1, &mut Vec::new());
    assert!(
        outside
            .unwrap_err()
            .to_string()
            .contains("token 0 has id 257")
    );
    // A corrupted llm.c file is not mistaken for a nanoGPT file.
    std::fs::write(file("shakespeare_train.bin"), &contents[1][..2000]).unwrap();
    let damaged = open(folder.path()).unwrap_err().to_string();
    assert!(damaged.contains("its llm.c header says 3024"), "{damaged}");
    std::fs::write(file("two_train.bin"), &raw).unwrap();
    let two = open(folder.path()).unwrap_err().to_string();
    assert!(
        two.contains("`shakespeare_train.bin` and `two_train.bin`"),
        "{two}"
    );
    std::fs::remove_file(file("two_train.bin")).unwrap();
    std::fs::write(file("other_val.bin"), &raw).unwrap();
    let two = open(folder.path()).unwrap_err();
    assert_eq!(two.class(), ErrorClass::Usage);
    let two = two.to_string();
    assert!(
        two.contains("`other_val.bin` and `shakespeare_val.bin`") && two.contains("hint:"),
        "{two}"
    );
    assert!(matches!(
        open(&file("none")),
        Err(DataError::Missing { .. })
    ));
}

#[test]
fn corrupted_llm_c_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.bin");
    let header = |fields: [u32; 3], body: usize| {
        let mut bytes: Vec<u8> = fields.iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.resize(1024 + body, 7);
        std::fs::write(&path, bytes).unwrap();
        Shard::open(&path)
    };
    assert_eq!(header([20_240_520, 1, 10], 20).unwrap().len(), 10);
    for (fields, body) in [
        ([20_240_520, 1, 10], 19),
        ([20_240_520, 1, 10], 40),
        ([20_240_520, 1, u32::MAX], 20),
        ([20_240_520, 2, 10], 20),
        ([20_240_801, 7, 10], 20),
        ([20_240_801, 1, 10], 40),
        ([7, 1, 10], 20),
    ] {
        assert_clear(&header(fields, body).unwrap_err(), &path);
    }
    for bytes in [&b""[..], b"1", b"odd"] {
        std::fs::write(&path, bytes).unwrap();
        assert_clear(&Shard::open_raw_u16(&path).unwrap_err(), &path);
    }
    assert_clear(&Shard::open(folder.path()).unwrap_err(), folder.path());
}
