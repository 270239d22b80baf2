//! Memory outside the heap: an allocator for array buffers that counts, and refuses what is over the limit.

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

use deno_core::v8;

use super::limits::stop_for_memory;

/// V8 asks again after each of its collections; when it asked so often in vain, there is nothing left to free.
const REFUSALS: usize = 4;

/// Counts what array buffers hold, across all of them. Resizable ones do not come here; their pages count as resident.
#[derive(Default)]
pub(super) struct Buffers {
    used: AtomicUsize,
    limit: AtomicUsize,
    refusals: AtomicUsize,
}

impl Buffers {
    /// A run begins: what the one before was refused does not count.
    pub(super) fn begin(&self) {
        self.refusals.store(0, Ordering::SeqCst);
    }

    pub(super) fn set_limit(&self, bytes: u64) {
        self.limit.store(usize::try_from(bytes).unwrap_or(usize::MAX), Ordering::SeqCst);
    }

    pub(super) fn allocator(&'static self) -> v8::UniqueRef<v8::Allocator> {
        // SAFETY: the handle is a static of the type that the table's functions take.
        unsafe { v8::new_rust_allocator(std::ptr::from_ref(self), &BUFFER_TABLE) }
    }

    fn take(&self, len: usize, allocate: impl FnOnce() -> *mut c_void) -> *mut c_void {
        let limit = self.limit.load(Ordering::SeqCst);
        let fits = |used: usize| used.checked_add(len).filter(|&sum| sum <= limit);
        if self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_err() {
            if self.refusals.fetch_add(1, Ordering::SeqCst) + 1 >= REFUSALS {
                stop_for_memory();
            }
            return std::ptr::null_mut();
        }
        self.refusals.store(0, Ordering::SeqCst);
        let data = allocate();
        if data.is_null() {
            self.used.fetch_sub(len, Ordering::SeqCst);
        }
        data
    }
}

static BUFFER_TABLE: v8::RustAllocatorVtable<Buffers> = v8::RustAllocatorVtable {
    allocate: buffer_zeroed,
    allocate_uninitialized: buffer_raw,
    free: buffer_free,
    drop: buffer_drop,
};

fn layout(len: usize) -> Option<std::alloc::Layout> {
    std::alloc::Layout::from_size_align(len.max(1), 16).ok()
}

unsafe extern "C" fn buffer_zeroed(buffers: &Buffers, len: usize) -> *mut c_void {
    let Some(layout) = layout(len) else {
        return std::ptr::null_mut();
    };
    // SAFETY: the layout is not empty.
    buffers.take(len, || unsafe { std::alloc::alloc_zeroed(layout) }.cast())
}

unsafe extern "C" fn buffer_raw(buffers: &Buffers, len: usize) -> *mut c_void {
    let Some(layout) = layout(len) else {
        return std::ptr::null_mut();
    };
    // SAFETY: the layout is not empty.
    buffers.take(len, || unsafe { std::alloc::alloc(layout) }.cast())
}

unsafe extern "C" fn buffer_free(buffers: &Buffers, data: *mut c_void, len: usize) {
    if let Some(layout) = layout(len)
        && !data.is_null()
    {
        // SAFETY: V8 gives back what the functions above gave it, with the same length.
        unsafe { std::alloc::dealloc(data.cast(), layout) };
        buffers.used.fetch_sub(len, Ordering::SeqCst);
    }
}

unsafe extern "C" fn buffer_drop(_: *const Buffers) {}
