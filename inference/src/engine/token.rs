//! A load that can be told to end by another thread.

use super::Cancel;
use parking_lot::Mutex;
use std::sync::Arc;

/// Tells a load to end. One for each try; there is no way back.
#[derive(Default)]
pub struct LoadToken(Mutex<State>);

#[derive(Default)]
struct State {
    is_cancelled: bool,
    cancel: Option<Arc<dyn Cancel>>,
}

impl LoadToken {
    /// From now on this is how the load is told to end: at once, where it was told before.
    pub fn heed(&self, cancel: Arc<dyn Cancel>) {
        let mut state = self.0.lock();
        if state.is_cancelled {
            cancel.cancel();
        } else {
            state.cancel = Some(cancel);
        }
    }

    /// Tells it to end. Returns at once; the load ends when it next looks.
    pub fn cancel(&self) {
        let mut state = self.0.lock();
        state.is_cancelled = true;
        if let Some(cancel) = state.cancel.take() {
            cancel.cancel();
        }
    }

    /// Whether it was told to end.
    pub fn is_cancelled(&self) -> bool {
        self.0.lock().is_cancelled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Cancel for Count {
        fn cancel(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn it_is_told_once_whichever_comes_first() {
        for told_first in [false, true] {
            let (token, count) = (LoadToken::default(), Arc::new(Count::default()));
            assert!(!token.is_cancelled());
            if told_first {
                token.cancel();
            }
            token.heed(Arc::clone(&count) as Arc<dyn Cancel>);
            token.cancel();
            token.cancel();
            assert!(token.is_cancelled());
            assert_eq!(count.0.load(Ordering::SeqCst), 1, "{told_first}");
        }
    }
}
