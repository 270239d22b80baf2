//! A run's timers, and the native functions that set and clear them.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use deno_core::v8;

use super::ops::{Args, Ret, state};

/// The run's timers, by their time and then by the order in which they were set.
#[derive(Default)]
pub(super) struct Timers {
    by_time: BTreeMap<(Instant, u32), Timer>,
    times: HashMap<u32, Instant>,
    next: u32,
}

pub(super) struct Timer {
    pub(super) function: v8::Global<v8::Function>,
    repeat: Option<Duration>,
}

impl Timers {
    pub(super) fn is_empty(&self) -> bool {
        self.by_time.is_empty()
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        self.by_time.keys().next().map(|(at, _)| *at)
    }

    /// The function of the next timer that is due; an interval is set again at once.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<v8::Global<v8::Function>> {
        let entry = self.by_time.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        let ((_, id), timer) = entry.remove_entry();
        let function = timer.function.clone();
        match timer.repeat {
            Some(every) => {
                self.by_time.insert((now + every, id), timer);
                self.times.insert(id, now + every);
            }
            None => {
                self.times.remove(&id);
            }
        }
        Some(function)
    }
}

/// `timerAdd(function, ms, repeat)`: the timer's number, from 1.
pub(super) fn add(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let (Some(state), Ok(function)) = (state(scope), args.get(0).try_cast::<v8::Function>()) else {
        return;
    };
    let ms = args.get(1).number_value(scope).filter(|ms| ms.is_finite() && *ms >= 1.0).unwrap_or(1.0);
    // Fractions are dropped, as elsewhere; a day is past any run's time anyway, and its sum with now never overflows.
    let every = Duration::from_millis(ms.min(2_147_483_647.0) as u64);
    let mut timers = state.timers.borrow_mut();
    timers.next = timers.next.wrapping_add(1).max(1);
    let (id, at) = (timers.next, Instant::now() + every);
    let repeat = args.get(2).is_true().then_some(every);
    timers.by_time.insert((at, id), Timer { function: v8::Global::new(scope, function), repeat });
    timers.times.insert(id, at);
    rv.set_uint32(id);
}

/// `timerClear(number)`; an unknown number is nothing.
pub(super) fn clear(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, _: Ret<'_>) {
    let (Some(state), Some(id)) = (state(scope), args.get(0).uint32_value(scope)) else {
        return;
    };
    let mut timers = state.timers.borrow_mut();
    if let Some(at) = timers.times.remove(&id) {
        timers.by_time.remove(&(at, id));
    }
}
