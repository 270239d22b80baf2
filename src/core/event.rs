//! What goes into the core and what comes out: the closed lists of events, effects and answers.

use std::sync::Arc;

use crate::core::disk::DiskBatch;
use crate::core::manifest::HistoryKeep;
use crate::core::run::{Close, NewRun, RunEnd, RunSpec};
use crate::fire::{
    AppId, AutomationId, EpochMs, ErrorCode, Handle, Problem, RunId, RunStatus, TriggerInfo, TriggerOrigin,
};

/// Names the caller that an [`Answer`] is for; chosen by the daemon.
pub type Token = u64;

/// What happened. The one closed list of inputs.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "an event is moved once; a box would cost an allocation for each")]
pub enum Event {
    DiskChanged(DiskBatch),
    /// The timer fired, or the clock was looked at.
    ClockChecked,
    /// The ledger's answer to [`Effect::RecoverLedger`].
    LedgerRecovered {
        app: AppId,
        result: Result<Recovered, Refusal>,
    },
    /// The ledger's answer to [`Effect::SetWatermarks`] and [`Effect::DisarmTriggers`].
    TriggersNoted {
        app: AppId,
        result: Result<(), Refusal>,
    },
    FireRequested(FireRequest),
    CancelRequested {
        run: RunId,
        why: ErrorCode,
        token: Option<Token>,
    },
    /// The ledger's answer to [`Effect::OpenRun`].
    RunOpened {
        run: RunId,
        result: Result<Recorded, Refusal>,
    },
    /// The ledger's answer to [`Effect::StartRun`].
    RunStarted {
        run: RunId,
        /// The app whose ledger was asked.
        app: AppId,
        result: Result<(), Refusal>,
    },
    RunEnded {
        run: RunId,
        end: RunEnd,
    },
    /// The answer of that app's ledger to [`Effect::CloseRun`].
    RunClosed {
        run: RunId,
        app: AppId,
        result: Result<(), Refusal>,
    },
    /// From now on nothing new is fired; what is open is left to end.
    Stopping,
}

/// What a ledger held when it was first opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Rows that were `running`: their owner is gone.
    pub running: Vec<NewRun>,
    /// Rows that were `queued`, oldest first.
    pub queued: Vec<NewRun>,
    pub watermarks: Vec<(AutomationId, String, EpochMs)>,
}

/// Why a ledger did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
    /// The file is the obstacle (full, locked, not writable): the same may be taken later.
    pub passing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    Inserted,
    /// This cron instant has a row already, or had one.
    Duplicate,
    /// This webhook delivery has a row already, or had one: that run.
    Redelivered(RunId),
}

/// Why a fire is recorded and not run, when its caller decides that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// The body of a post does not pass the webhook's `filter`.
    Filter,
}

/// A fire that somebody asks for.
#[derive(Debug, Clone)]
pub struct FireRequest {
    pub handle: Handle,
    pub origin: TriggerOrigin,
    pub trigger: TriggerInfo,
    pub input_json: Option<String>,
    /// The run that invokes it.
    pub parent: Option<RunId>,
    /// Its row must survive power loss before it is answered.
    pub synced: bool,
    /// It is not to be run, only recorded as `skipped`; by whose decision.
    pub skip: Option<Skip>,
    /// Told when the row is written, or why there is none.
    pub opened: Option<Token>,
    /// Told when the run has ended and that is written: [`Answer::Ended`]. When the ledger refuses the end,
    /// [`Answer::NotRecorded`].
    pub ended: Option<Token>,
}

impl FireRequest {
    /// A fire without an input that nobody invokes and nobody waits for; whoever asks for more sets it.
    pub fn new(handle: Handle, origin: TriggerOrigin) -> Self {
        Self {
            handle,
            origin,
            trigger: TriggerInfo::default(),
            input_json: None,
            parent: None,
            synced: false,
            skip: None,
            opened: None,
            ended: None,
        }
    }
}

/// What is told to a caller.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Accepted {
        run: RunId,
        status: RunStatus,
    },
    Busy {
        active: RunId,
    },
    /// There is no such automation.
    Unknown,
    /// Its manifest is invalid and was never valid.
    Unrunnable {
        problems: Vec<Problem>,
    },
    /// Too deep, or a cycle.
    Refused {
        message: String,
    },
    /// This delivery was taken before, as that run; nothing was started.
    Redelivered {
        run: RunId,
    },
    /// Recorded as `skipped`, as asked for.
    Skipped {
        run: RunId,
    },
    /// The ledger did not take it.
    NotRecorded {
        message: String,
    },
    Stopping,
    Ended(RunEnd),
    Cancelling,
    /// There is no such open run.
    NotOpen,
}

/// What is to be done. The one closed list of outputs, to be performed in order.
#[derive(Debug)]
pub enum Effect {
    RecoverLedger {
        app: AppId,
    },
    CloseLedger {
        app: AppId,
    },
    /// Then [`Event::TriggersNoted`].
    SetWatermarks {
        app: AppId,
        marks: Vec<(AutomationId, String, EpochMs)>,
    },
    /// Triggers that are not armed any more: what they would have fired from now on is no outage. Then
    /// [`Event::TriggersNoted`].
    DisarmTriggers {
        app: AppId,
        triggers: Vec<(AutomationId, String)>,
    },
    /// Write the row; then [`Event::RunOpened`].
    OpenRun {
        run: NewRun,
        synced: bool,
    },
    /// `queued` becomes `running`; then [`Event::RunStarted`].
    StartRun {
        run: RunId,
        handle: Handle,
        at: EpochMs,
    },
    Launch(RunSpec),
    AbortRun {
        run: RunId,
        why: ErrorCode,
    },
    /// Write the end; then [`Event::RunClosed`].
    CloseRun(Arc<Close>),
    SweepHistory {
        handle: Handle,
        keep: HistoryKeep,
    },
    Answer {
        token: Token,
        answer: Answer,
    },
    /// Something an operator should know.
    Notice(String),
}
