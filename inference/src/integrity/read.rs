//! One pass over a file: the bytes that are hashed are the bytes that are kept.

use super::beneath::{OpenFile, modified};
use super::digest::Digest;
use super::error::IntegrityError;
use super::progress::Progress;
use rustix::fs::{Advice, fadvise, fstat};
use sha2::{Digest as _, Sha256};
use std::io::{self, ErrorKind, Read};
use std::iter::repeat_n;
use std::sync::{Arc, mpsc};
use std::thread;

/// Bytes per read. Large enough that system calls cost nothing, small enough that progress moves and that reading and
/// hashing overlap well.
const CHUNK: usize = 1 << 20;
/// Chunks that may wait to be hashed. They are in memory anyway; the bound keeps the hash near the read.
const CHUNKS_WAITING: usize = 8;

/// What to do with the bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// In a vector.
    Owned,
    /// In a shared slice, which is how `ort` takes external data.
    Shared,
    /// Nowhere: only the digest is wanted.
    Nothing,
}

/// The bytes of a file.
#[derive(Debug)]
pub(super) enum Kept {
    Owned(Vec<u8>),
    Shared(Arc<[u8]>),
    Nothing,
}

/// Reads a file whole. `name` is for messages.
pub(super) fn read(
    mut open: OpenFile,
    name: &str,
    keep: Keep,
    progress: &Progress,
) -> Result<(Kept, Digest), IntegrityError> {
    // Asks the kernel to read ahead while this thread hashes. A file system that cannot does without.
    let _ = fadvise(&open.file, 0, None, Advice::Sequential);
    let answer = read_exactly(&mut open.file, open.size, name, keep, progress)?;
    let status = fstat(&open.file).map_err(|errno| failed(name, errno.into()))?;
    let size = u64::try_from(status.st_size).unwrap_or(0);
    if size != open.size || modified(&status) != open.modified {
        return Err(IntegrityError::Changed { file: name.to_owned() });
    }
    Ok(answer)
}

/// Reads `size` bytes and expects the end of the file there.
fn read_exactly(
    source: &mut impl Read,
    size: u64,
    name: &str,
    keep: Keep,
    progress: &Progress,
) -> Result<(Kept, Digest), IntegrityError> {
    let no_memory = || IntegrityError::NoMemory { file: name.to_owned(), bytes: size };
    let length = usize::try_from(size).map_err(|_| no_memory())?;
    let kept_bytes = if keep == Keep::Nothing { length.min(CHUNK) } else { length };
    // A shared slice cannot be asked for gently, so the vector is asked, also in its place.
    let mut owned = Vec::new();
    owned.try_reserve_exact(kept_bytes).map_err(|_| no_memory())?;
    let mut hash = Hasher { hash: Sha256::new(), name, progress };
    let kept = match keep {
        Keep::Owned => {
            owned.resize(length, 0);
            hash.fill_all(source, &mut owned)?;
            Kept::Owned(owned)
        }
        Keep::Shared => {
            drop(owned);
            let mut shared: Arc<[u8]> = repeat_n(0, length).collect();
            let bytes = Arc::get_mut(&mut shared).expect("nobody else holds a slice just made");
            hash.fill_all(source, bytes)?;
            Kept::Shared(shared)
        }
        Keep::Nothing => {
            owned.resize(kept_bytes, 0);
            let mut remaining = length;
            while remaining > 0 {
                let chunk = &mut owned[..remaining.min(CHUNK)];
                hash.fill(source, chunk)?;
                remaining -= chunk.len();
            }
            Kept::Nothing
        }
    };
    let grown = loop {
        match source.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => break other.map_err(|error| failed(name, error))? > 0,
        }
    };
    if grown {
        return Err(IntegrityError::Changed { file: name.to_owned() });
    }
    Ok((kept, Digest(hash.hash.finalize().into())))
}

struct Hasher<'a> {
    hash: Sha256,
    name: &'a str,
    progress: &'a Progress,
}

impl Hasher<'_> {
    fn fill(&mut self, source: &mut impl Read, chunk: &mut [u8]) -> Result<(), IntegrityError> {
        self.read(source, chunk)?;
        self.hash.update(&*chunk);
        Ok(())
    }

    /// Fills `bytes`, hashing on a second thread what has been read: the load of a large model waits for the slower of
    /// disk and hash, not for both.
    fn fill_all(&mut self, source: &mut impl Read, bytes: &mut [u8]) -> Result<(), IntegrityError> {
        if bytes.len() <= 2 * CHUNK {
            return bytes.chunks_mut(CHUNK).try_for_each(|chunk| self.fill(source, chunk));
        }
        let so_far = self.hash.clone();
        let hashed = thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel::<&[u8]>(CHUNKS_WAITING);
            let hashing =
                thread::Builder::new().name("hash".to_owned()).spawn_scoped(scope, move || {
                    receiver.into_iter().fold(so_far, |hash, chunk| hash.chain_update(chunk))
                });
            let hashing = hashing.map_err(|error| failed(self.name, error))?;
            for chunk in bytes.chunks_mut(CHUNK) {
                self.read(source, chunk)?;
                // The other end goes only by a panic, which the join below tells.
                let _ = sender.send(chunk);
            }
            drop(sender);
            hashing.join().map_err(|_| {
                failed(self.name, io::Error::other("the thread that hashes it panicked"))
            })
        })?;
        self.hash = hashed;
        Ok(())
    }

    fn read(&self, source: &mut impl Read, chunk: &mut [u8]) -> Result<(), IntegrityError> {
        if self.progress.is_stopped() {
            return Err(failed(self.name, io::Error::other("it was told to end")));
        }
        source.read_exact(chunk).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => IntegrityError::Changed { file: self.name.to_owned() },
            _ => failed(self.name, error),
        })?;
        self.progress.advance(chunk.len() as u64);
        Ok(())
    }
}

fn failed(name: &str, source: io::Error) -> IntegrityError {
    IntegrityError::Io { file: name.to_owned(), operation: "reading", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(keep: Keep, bytes: &[u8], size: u64) -> Result<(Kept, Digest), IntegrityError> {
        read_exactly(&mut &*bytes, size, "w", keep, &Progress::default())
    }

    #[test]
    fn every_way_of_keeping_hashes_alike() {
        let bytes: Vec<u8> = (0..CHUNK * 2 + 17).map(|index| (index % 251) as u8).collect();
        let size = bytes.len() as u64;
        for keep in [Keep::Owned, Keep::Shared, Keep::Nothing] {
            let (kept, digest) = read_as(keep, &bytes, size).unwrap();
            assert_eq!(digest, Digest::of(&bytes));
            match kept {
                Kept::Owned(owned) => assert_eq!(owned, bytes),
                Kept::Shared(shared) => assert_eq!(*shared, *bytes),
                Kept::Nothing => assert_eq!(keep, Keep::Nothing),
            }
        }
    }

    #[test]
    fn a_file_that_shrinks_or_grows_is_refused() {
        for keep in [Keep::Owned, Keep::Shared, Keep::Nothing] {
            for size in [9, 11] {
                let error = read_as(keep, &[7; 10], size).unwrap_err();
                assert!(matches!(error, IntegrityError::Changed { .. }), "{error}");
                assert!(error.retryable());
            }
        }
    }

    #[test]
    fn a_read_that_is_told_to_end_ends() {
        let progress = Progress::default();
        progress.stop();
        for keep in [Keep::Owned, Keep::Shared, Keep::Nothing] {
            let error = read_exactly(&mut [7; 10].as_slice(), 10, "w", keep, &progress);
            assert!(error.unwrap_err().to_string().contains("w"));
        }
        assert_eq!(progress.bytes_done(), 0);
    }

    #[test]
    fn a_size_beyond_the_machine_is_refused_before_it_is_allocated() {
        for keep in [Keep::Owned, Keep::Shared] {
            let error = read_as(keep, &[], u64::MAX).unwrap_err();
            assert!(matches!(error, IntegrityError::NoMemory { .. }), "{error}");
        }
    }
}
