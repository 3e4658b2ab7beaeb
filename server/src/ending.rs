//! How far the server was told to end. Told from several sides, in any order, and it only ever goes further.

use tokio::sync::watch;

/// How a server is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// Not at all.
    #[default]
    No,
    /// In order: not ready at once, still serving for the delay, then no new connections, then the end.
    Drain,
    /// The same without the delay, because nobody is left who would send anybody here.
    DrainNow,
    /// Now, whatever is under way.
    AtOnce,
}

/// Where it is told. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endings(watch::Sender<Ending>);

/// Where it is heard.
#[derive(Debug)]
pub struct Told(watch::Receiver<Ending>);

impl Default for Endings {
    fn default() -> Self {
        Endings(watch::Sender::new(Ending::No))
    }
}

impl Endings {
    /// Tells the server to end like that, or as it was told before where that went further. False when it did.
    pub fn tell(&self, ending: Ending) -> bool {
        self.0.send_if_modified(|told| {
            let further = *told < ending;
            *told = ending.max(*told);
            further
        })
    }

    /// Hears of it from now on, and of what was told before.
    pub fn hear(&self) -> Told {
        Told(self.0.subscribe())
    }
}

impl Told {
    /// Waits until the server was told to end like that, or further. The source lives as long as the server.
    pub async fn at_least(&mut self, ending: Ending) {
        let _ = self.0.wait_for(|told| *told >= ending).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_only_goes_further() {
        let endings = Endings::default();
        assert!(endings.tell(Ending::DrainNow));
        assert!(!endings.tell(Ending::Drain), "it is told already");
        let mut told = endings.hear();
        told.at_least(Ending::Drain).await;
        let mut more = endings.hear();
        let waiter = tokio::spawn(async move { more.at_least(Ending::AtOnce).await });
        assert!(endings.tell(Ending::AtOnce));
        waiter.await.unwrap();
    }
}
