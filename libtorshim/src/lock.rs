//! A lock for what the process knows of its sockets.
//!
//! Signals are blocked while it is held, so that a handler that connects cannot wait for the thread
//! that it interrupted; fork(2) takes it around the copy, so that the child never finds it held by a
//! thread that it does not have. It is never held across a wait.

use crate::sys;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A value that one thread at a time may use.
pub struct Lock<T> {
    /// 0 free, 1 held, 2 held and somebody waits.
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through `with`, by one thread at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Lock<T> {
        Lock {
            word: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    fn acquire(&self) {
        let taken = self
            .word
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            while self.word.swap(2, Ordering::Acquire) != 0 {
                sys::futex_wait(&self.word, 2);
            }
        }
    }

    fn release(&self) {
        if self.word.swap(0, Ordering::Release) == 2 {
            sys::futex_wake(&self.word);
        }
    }

    /// Runs `f` with the value. `f` must not wait, and must not call back into the lock.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mask = sys::block_signals();
        self.acquire();
        // SAFETY: the lock is held, by this thread, and signals are blocked: no other reference.
        let r = f(unsafe { &mut *self.value.get() });
        self.release();
        sys::restore_signals(mask);
        r
    }

    /// Before fork(2): takes the lock. `mask` keeps the signal mask until [`Lock::after_fork`].
    pub fn before_fork(&self, mask: &AtomicU64) {
        let old = sys::block_signals();
        self.acquire();
        mask.store(old, Ordering::Relaxed);
    }

    /// After fork(2), in parent and child: gives it back.
    pub fn after_fork(&self, mask: &AtomicU64) {
        let old = mask.load(Ordering::Relaxed);
        self.release();
        sys::restore_signals(old);
    }
}
