//! Judgement, pure: signals become verdicts. No I/O, no threads, no clock; time is an argument.
