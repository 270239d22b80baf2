//! The one binary: the command line, or, when started with the hidden argument, a host for handlers.

fn main() {
    // First of all, before any thread or runtime: a host puts itself in its box while it is alone in its process.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == dirigent::isolate::HOST_ARG) {
        std::process::exit(dirigent::isolate::host_main());
    }
    std::process::exit(dirigent::cli::main());
}
