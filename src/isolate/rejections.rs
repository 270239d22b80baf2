//! Promises that were rejected while nothing handled them.
//!
//! In an automation each is a line of the log, at the end of the turn that rejected it. In a query or an action, where
//! it is how a statement fails that nobody waits for, it is kept until the end: a handler may come that late, and what
//! has none by then fails the run. A mistake here lets an action that lost a write say that all is well.

use deno_core::v8;

use super::ops;

/// Rejections kept with what they were rejected with; of a flood beyond that only the number is kept.
const MAX_KEPT: usize = 1000;

#[derive(Default)]
pub(super) struct Rejections {
    kept: Vec<Rejection>,
    beyond: usize,
}

struct Rejection {
    promise: v8::Global<v8::Promise>,
    value: v8::Global<v8::Value>,
}

impl Rejections {
    /// What the kept ones were rejected with, in their order, and how many there are beyond them; none is left here.
    pub(super) fn take(&mut self) -> (Vec<v8::Global<v8::Value>>, usize) {
        let Self { kept, beyond } = std::mem::take(self);
        (kept.into_iter().map(|rejection| rejection.value).collect(), beyond)
    }

    /// A promise that was rejected before has got a handler.
    fn handled(&mut self, promise: v8::Local<'_, v8::Promise>) {
        if !self.forget(promise) {
            self.beyond = self.beyond.saturating_sub(1);
        }
    }

    /// The loop itself looks at this promise. False when it is not among the kept ones.
    pub(super) fn forget(&mut self, promise: v8::Local<'_, v8::Promise>) -> bool {
        let at = self.kept.iter().position(|rejection| rejection.promise == promise);
        at.map(|at| self.kept.remove(at)).is_some()
    }
}

/// V8 calls it for each promise that is rejected without a handler, or gets one afterwards.
pub(super) unsafe extern "C" fn on_reject(message: v8::PromiseRejectMessage<'_>) {
    v8::callback_scope!(unsafe scope, &message);
    let Some(state) = ops::state(scope) else { return };
    let promise = message.get_promise();
    let mut rejections = state.rejections.borrow_mut();
    match message.get_event() {
        v8::PromiseRejectEvent::PromiseRejectWithNoHandler => match message.get_value() {
            Some(value) if rejections.kept.len() < MAX_KEPT => {
                let promise = v8::Global::new(scope, promise);
                rejections.kept.push(Rejection { promise, value: v8::Global::new(scope, value) });
            }
            _ => rejections.beyond += 1,
        },
        v8::PromiseRejectEvent::PromiseHandlerAddedAfterReject => rejections.handled(promise),
        _ => {}
    }
}
