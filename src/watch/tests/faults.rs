//! Sources that refuse, lose hints, break or panic, and receivers that are slow or gone.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::watch::place::Place;
use crate::watch::source::{Hint, Refusal, Waker};

/// The kernel's source with a limit on watches.
struct Limited {
    inner: Box<dyn Source>,
    placed: HashSet<Place>,
    limit: Arc<AtomicUsize>,
}

impl Source for Limited {
    fn watch(&mut self, place: &Place, dir: &Path) -> Result<(), Refusal> {
        if !self.placed.contains(place) && self.placed.len() >= self.limit.load(Ordering::SeqCst) {
            return Err(Refusal::Refused("the limit is N; raise it with: sudo sysctl".to_owned()));
        }
        self.inner.watch(place, dir)?;
        self.placed.insert(place.clone());
        Ok(())
    }

    fn unwatch(&mut self, place: &Place) {
        self.placed.remove(place);
        self.inner.unwatch(place);
    }

    fn wait(&mut self, timeout: Option<Duration>, sink: &mut dyn FnMut(Hint<'_>)) -> std::io::Result<()> {
        self.inner.wait(timeout, sink)
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn count(&self) -> usize {
        self.inner.count()
    }
}

#[test]
fn folders_beyond_the_limit_are_polled_and_watched_again_when_there_is_room() {
    // Root and app; its automations; one automation; all but one; none at all.
    for limit in [2, 3, 4, 0] {
        let shared = Arc::new(AtomicUsize::new(limit));
        let theirs = Arc::clone(&shared);
        let make: MakeSource = Box::new(move || {
            let (inner, limit) = (source::kernel()?, Arc::clone(&theirs));
            Ok(Box::new(Limited { inner, placed: HashSet::new(), limit }) as Box<dyn Source>)
        });
        let mut harness = Harness::with(Mode::Kernel, make, 16, |_| {});
        let state = harness.state.clone().expect("a state");
        assert_eq!(state.mode, if limit == 0 { WatchMode::Polling } else { WatchMode::Mixed });
        assert!(state.watches <= limit);
        assert_eq!(state.message.as_deref(), Some("the limit is N; raise it with: sudo sysctl"));
        for n in 1..3 {
            save(&harness.path("a/automations/x/automation.json"), &json(n));
            harness.until_manifest("a/x", &json(n));
            harness.pass_sentinel(n);
        }
        write_automation(&harness.root, "b", "y", &json(5));
        harness.until_manifest("b/y", &json(5));
        fs::remove_dir_all(harness.path("b")).expect("a removal");
        harness.until("the app gone", |h| !h.apps.contains_key("b"));
        shared.store(usize::MAX, Ordering::SeqCst);
        harness.watcher.as_ref().expect("the watcher").rescan();
        harness.until("all native", |h| h.state.as_ref().is_some_and(|s| s.mode == WatchMode::Native));
        assert_eq!(harness.state.as_ref().and_then(|s| s.message.clone()), None);
    }
}

#[test]
fn a_source_that_cannot_be_made_is_replaced_by_polling() {
    let make: MakeSource = Box::new(|| Err(std::io::Error::other("no more instances; raise it with: sysctl")));
    let mut harness = Harness::with(Mode::Kernel, make, 16, |_| {});
    let state = harness.state.clone().expect("a state");
    assert_eq!((state.mode, state.watches), (WatchMode::Polling, 0));
    assert_eq!(state.message.as_deref(), Some("no more instances; raise it with: sysctl"));
    harness.pass_sentinel(1);
}

#[test]
fn polling_that_was_asked_for_needs_no_message() {
    let harness = Harness::new(Mode::Poll);
    let state = harness.state.clone().expect("a state");
    assert_eq!((state.mode, state.message), (WatchMode::Polling, None));
}

enum Order {
    Overflow,
    Break,
    Panic,
}

/// Tells only what it is ordered to.
struct Scripted {
    orders: Arc<Mutex<Vec<Order>>>,
    thread: std::thread::Thread,
    wakers: Arc<Mutex<Option<Waker>>>,
}

impl Scripted {
    fn make() -> (MakeSource, impl Fn(Order)) {
        let orders = Arc::new(Mutex::new(Vec::new()));
        let wakers: Arc<Mutex<Option<Waker>>> = Arc::default();
        let (their_orders, their_wakers) = (Arc::clone(&orders), Arc::clone(&wakers));
        let make = move || {
            let source = Scripted {
                orders: Arc::clone(&their_orders),
                thread: std::thread::current(),
                wakers: Arc::clone(&their_wakers),
            };
            *source.wakers.lock().expect("a lock") = Some(source.waker());
            Ok(Box::new(source) as Box<dyn Source>)
        };
        let order = move |order| {
            orders.lock().expect("a lock").push(order);
            let waker = wakers.lock().expect("a lock").clone();
            waker.expect("a source was made")();
        };
        (Box::new(make), order)
    }
}

impl Source for Scripted {
    fn watch(&mut self, _place: &Place, _dir: &Path) -> Result<(), Refusal> {
        Ok(())
    }

    fn unwatch(&mut self, _place: &Place) {}

    fn wait(&mut self, timeout: Option<Duration>, sink: &mut dyn FnMut(Hint<'_>)) -> std::io::Result<()> {
        let order = self.orders.lock().expect("a lock").pop();
        match order {
            Some(Order::Overflow) => sink(Hint::Overflow),
            Some(Order::Break) => return Err(std::io::Error::other("the descriptor broke")),
            Some(Order::Panic) => panic!("a bug in the source"),
            None => match timeout {
                Some(timeout) => std::thread::park_timeout(timeout),
                None => std::thread::park(),
            },
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        let thread = self.thread.clone();
        Arc::new(move || thread.unpark())
    }

    fn count(&self) -> usize {
        1
    }
}

#[test]
fn lost_hints_lead_to_a_rescan_of_everything() {
    let (make, order) = Scripted::make();
    let mut harness = Harness::with(Mode::Kernel, make, 16, |_| {});
    save(&harness.path("a/automations/x/automation.json"), &json(1));
    write_automation(&harness.root, "b", "y", &json(2));
    fs::remove_dir_all(harness.path("a/automations/sentinel")).expect("a removal");
    order(Order::Overflow);
    harness.until("all three", |h| {
        h.manifest("a/x") == Some(&json(1)) && h.manifest("b/y") == Some(&json(2)) && h.manifest("a/sentinel").is_none()
    });
    assert_eq!(harness.full_batches, 1, "a rescan tells differences");
    save(&harness.path("a/automations/x/automation.json"), &json(3));
    harness.watcher.as_ref().expect("the watcher").rescan();
    harness.until_manifest("a/x", &json(3));
}

#[test]
fn a_source_that_breaks_or_panics_is_started_anew_and_reported() {
    for (fault, reason) in [(Order::Break, "the descriptor broke"), (Order::Panic, "a bug in the source")] {
        let (make, order) = Scripted::make();
        let mut harness = Harness::with(Mode::Kernel, make, 16, |_| {});
        save(&harness.path("a/automations/x/automation.json"), &json(1));
        order(fault);
        harness.until("a second full batch", |h| h.full_batches == 2);
        assert_eq!(harness.manifest("a/x"), Some(json(1).as_str()));
        harness.until("the report", |h| h.state.as_ref().is_some_and(|s| !s.problems.is_empty()));
        let problem = &harness.state.as_ref().expect("a state").problems[0];
        assert_eq!(problem.code, "watcher_restarted");
        assert!(problem.message.contains(reason), "{}", problem.message);
        assert!(problem.hint.is_some());
    }
}

#[test]
fn a_slow_receiver_gets_the_last_state_and_nothing_is_lost() {
    let mut harness = Harness::with(Mode::Kernel, source_of(Mode::Kernel), 1, |_| {});
    for n in 1..=500 {
        save(&harness.path("a/automations/x/automation.json"), &json(n));
    }
    write_automation(&harness.root, "b", "y", &json(1));
    harness.until_manifest("a/x", &json(500));
    harness.until_manifest("b/y", &json(1));
    assert!(harness.log.len() < 100, "saves that nobody waited for are collapsed: {}", harness.log.len());
}

#[test]
fn the_thread_ends_with_its_owner_and_with_its_receiver() {
    for mode in MODES {
        let mut harness = Harness::new(*mode);
        // Joins the thread.
        drop(harness.watcher.take());
        assert!(harness.rx.blocking_recv().is_none(), "{mode:?}: the sender is gone");
        let mut harness = Harness::new(*mode);
        harness.rx.close();
        save(&harness.path("a/automations/x/automation.json"), &json(1));
        let watcher = harness.watcher.take().expect("the watcher");
        let mut watcher = std::mem::ManuallyDrop::new(watcher);
        watcher.thread.take().expect("a thread").join().expect("it ended by itself");
    }
}

#[test]
fn a_root_that_vanishes_takes_its_apps_along_and_brings_them_back() {
    for mode in [Mode::Kernel, Mode::Poll] {
        let mut harness = Harness::new(mode);
        let away = harness.outside.join("away");
        fs::rename(&harness.root, &away).expect("a rename");
        harness.until("no apps", |h| h.apps.is_empty());
        assert_eq!(harness.root_problems, ["root_missing"]);
        fs::rename(&away, &harness.root).expect("a rename");
        harness.until_manifest("a/x", &json(0));
        assert!(harness.root_problems.is_empty());
        harness.pass_sentinel(1);
    }
}
