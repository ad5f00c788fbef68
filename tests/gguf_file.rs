//! GGUF files taken apart and put together again, to change single entries.

use std::fs;
use std::path::Path;

use nextword_base::rng::RandomSequence;

/// A file: every metadata value and every tensor as its bytes.
#[derive(Clone)]
pub(crate) struct RawFile {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    /// Keys, and values with their types.
    pub(crate) entries: Vec<(String, Vec<u8>)>,
    pub(crate) tensors: Vec<RawTensor>,
}

/// A tensor: its sizes (fastest axis first), the code of its type, and its bytes.
#[derive(Clone)]
pub(crate) struct RawTensor {
    pub(crate) name: String,
    pub(crate) sizes: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

pub(crate) fn u32_value(value: u32) -> Vec<u8> {
    [4_u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub(crate) fn f32_value(value: f32) -> Vec<u8> {
    [6_u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub(crate) fn bool_value(value: bool) -> Vec<u8> {
    [7_u32.to_le_bytes().as_slice(), &[u8::from(value)]].concat()
}

pub(crate) fn text_value(value: &str) -> Vec<u8> {
    [8_u32.to_le_bytes().to_vec(), text(value)].concat()
}

fn array(kind: u32, len: usize, items: &[u8]) -> Vec<u8> {
    let start = [9_u32.to_le_bytes(), kind.to_le_bytes()].concat();
    [&start, (len as u64).to_le_bytes().as_slice(), items].concat()
}

pub(crate) fn texts_value(values: &[String]) -> Vec<u8> {
    let items: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
    array(8, values.len(), &items)
}

pub(crate) fn i32s_value(values: &[i32]) -> Vec<u8> {
    let items: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    array(5, values.len(), &items)
}

pub(crate) fn f32s_value(values: &[f32]) -> Vec<u8> {
    let items: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    array(6, values.len(), &items)
}

/// A type of tensors that consist of blocks.
pub(crate) struct BlockType {
    pub(crate) code: u32,
    pub(crate) name: &'static str,
    /// Values in a block.
    pub(crate) len: usize,
    pub(crate) bytes: usize,
    /// Where scale and minimum are.
    halves: &'static [usize],
}

const fn block_type(
    code: u32,
    name: &'static str,
    [len, bytes]: [usize; 2],
    halves: &'static [usize],
) -> BlockType {
    BlockType {
        code,
        name,
        len,
        bytes,
        halves,
    }
}

/// All types that consist of blocks.
pub(crate) static BLOCK_TYPES: [BlockType; 12] = [
    block_type(2, "Q4_0", [32, 18], &[0]),
    block_type(3, "Q4_1", [32, 20], &[0, 2]),
    block_type(6, "Q5_0", [32, 22], &[0]),
    block_type(7, "Q5_1", [32, 24], &[0, 2]),
    block_type(8, "Q8_0", [32, 34], &[0]),
    block_type(10, "Q2_K", [256, 84], &[80, 82]),
    block_type(11, "Q3_K", [256, 110], &[108]),
    block_type(12, "Q4_K", [256, 144], &[0, 2]),
    block_type(13, "Q5_K", [256, 176], &[0, 2]),
    block_type(14, "Q6_K", [256, 210], &[208]),
    block_type(20, "IQ4_NL", [32, 18], &[0]),
    block_type(23, "IQ4_XS", [256, 136], &[0]),
];

impl RawTensor {
    /// Replaces the values with random blocks, all of whose bits are used, and whose scales are small.
    pub(crate) fn randomize(&mut self, kind: &BlockType, rng: &mut RandomSequence) {
        let values = self.sizes.iter().product::<u64>() as usize;
        assert!((self.sizes[0] as usize).is_multiple_of(kind.len));
        self.kind = kind.code;
        self.bytes.clear();
        for _ in 0..values / kind.len {
            let start = self.bytes.len();
            let random = (0..kind.bytes).map(|_| rng.below(256) as u8);
            self.bytes.extend(random);
            // From 2^-11 on, and from 2^-14 on if small integers multiply them.
            let smallest = if kind.len == 32 { 0x1000 } else { 0x0400 };
            for at in kind.halves {
                let half = smallest | rng.below(1024) as u16;
                self.bytes[start + at..start + at + 2].copy_from_slice(&half.to_le_bytes());
            }
        }
    }
}

struct Cursor<'a>(&'a [u8], usize);

impl Cursor<'_> {
    fn take(&mut self, len: usize) -> &[u8] {
        self.1 += len;
        &self.0[self.1 - len..self.1]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }

    fn skip(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => drop(self.take(1).len()),
            2 | 3 => drop(self.take(2).len()),
            4..=6 => drop(self.u32()),
            8 => drop(self.text()),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                for _ in 0..len {
                    self.skip(kind);
                }
            }
            _ => drop(self.u64()),
        }
    }
}

impl RawFile {
    /// Reads a file as nextword writes it.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let mut cursor = Cursor(&bytes, 4);
        let version = cursor.u32();
        let (tensor_count, entry_count) = (cursor.u64(), cursor.u64());
        let entry = |_| {
            let key = cursor.text();
            let start = cursor.1;
            let kind = cursor.u32();
            cursor.skip(kind);
            (key, bytes[start..cursor.1].to_vec())
        };
        let entries = (0..entry_count).map(entry).collect();
        let info = |_| {
            let name = cursor.text();
            let axes = cursor.u32();
            let sizes: Vec<u64> = (0..axes).map(|_| cursor.u64()).collect();
            (name, sizes, cursor.u32(), cursor.u64() as usize)
        };
        let table: Vec<_> = (0..tensor_count).map(info).collect();
        let start = cursor.1.next_multiple_of(32);
        let tensors = table.into_iter().map(|(name, sizes, kind, offset)| {
            let n = sizes.iter().product::<u64>() as usize;
            let len = match kind {
                0 => 4 * n,
                1 | 30 => 2 * n,
                _ => {
                    let block = BLOCK_TYPES.iter().find(|block| block.code == kind);
                    let block = block.unwrap_or_else(|| panic!("tensor type {kind}"));
                    n / block.len * block.bytes
                }
            };
            let bytes = bytes[start + offset..start + offset + len].to_vec();
            RawTensor {
                name,
                sizes,
                kind,
                bytes,
            }
        });
        Self {
            version,
            alignment: 32,
            entries,
            tensors: tensors.collect(),
        }
    }

    /// Sets or adds an entry.
    pub(crate) fn set(&mut self, key: &str, value: Vec<u8>) {
        match self.entries.iter_mut().find(|(other, _)| other == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key.to_string(), value)),
        }
    }

    pub(crate) fn remove(&mut self, key: &str) {
        let before = self.entries.len();
        self.entries.retain(|(other, _)| other != key);
        assert_eq!(self.entries.len() + 1, before, "{key}");
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut RawTensor {
        self.tensors
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .unwrap()
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            out.extend(text(key));
            out.extend(value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.sizes.len() as u32).to_le_bytes());
            out.extend(tensor.sizes.iter().flat_map(|size| size.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.bytes);
        }
        out
    }

    pub(crate) fn write(&self, path: &Path) {
        fs::write(path, self.to_bytes()).unwrap();
    }
}
