//! Waits to the microsecond: the runtime's own timer counts whole milliseconds, and an open loop is as good as its clock.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

/// One timer of the kernel.
pub(crate) struct Alarm {
    /// Read like a pipe: the runtime has no other safe door for a file that it does not know.
    timer: Receiver,
}

impl Alarm {
    pub(crate) fn new() -> io::Result<Alarm> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Alarm { timer: Receiver::from_file_unchecked(File::from(timer))? })
    }

    /// Returns at that moment, or at once when it is past.
    pub(crate) async fn until(&self, moment: Instant) -> io::Result<()> {
        loop {
            let left = moment.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.sleep(left).await?;
        }
    }

    async fn sleep(&self, left: Duration) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        // Setting it again also takes back an expiry that nobody has read.
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        let mut expiries = [0_u8; 8];
        loop {
            self.timer.readable().await?;
            match self.timer.try_read(&mut expiries) {
                // An expiry of before that was taken back.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(drop),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_never_rings_early() {
        let alarm = Alarm::new().unwrap();
        for microseconds in [0, 1, 300, 2500] {
            let moment = Instant::now() + Duration::from_micros(microseconds);
            alarm.until(moment).await.unwrap();
            assert!(Instant::now() >= moment);
        }
        // A moment in the past is now: a generator that is late has to catch up.
        let past = Instant::now();
        alarm.until(past).await.unwrap();
    }

    #[tokio::test]
    async fn an_alarm_that_was_dropped_while_waiting_can_be_set_again() {
        let alarm = Alarm::new().unwrap();
        let far = Instant::now() + Duration::from_secs(600);
        let waited = tokio::time::timeout(Duration::from_millis(5), alarm.until(far)).await;
        assert!(waited.is_err());
        alarm.until(Instant::now() + Duration::from_millis(1)).await.unwrap();
    }
}
