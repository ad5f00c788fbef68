//! Git LFS pointers: small text files that stand for large ones until `git lfs pull` fetches them.

/// What to say about a pointer.
pub const POINTER_PROBLEM: &str = "is a Git LFS pointer, not the file itself; hint: run `git lfs pull` in the folder, or \
                                   download the file";

/// Returns whether `bytes`, the beginning of a file, is that of a Git LFS pointer.
///
/// ```
/// use nextword_base::git_lfs;
///
/// let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n";
/// assert!(git_lfs::is_pointer(pointer));
/// assert!(!git_lfs::is_pointer(b"{}"));
/// ```
pub fn is_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}
