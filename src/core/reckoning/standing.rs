//! What speaks against an instance, as a part of its load: `health` finds it out, and whoever decides reads it.

/// How an instance stands at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Standing {
    /// Nothing speaks against it.
    #[default]
    Healthy,
    /// Failures have cost it weight, in (0, 1): expected times count divided by it.
    Degraded(f64),
    /// What it was sent last went wrong, time and again, and nothing has gone well since: a candidate only where its model has no other.
    /// That holds for a moment, so whoever is to blame harms nobody for longer.
    Doubted,
    /// It says that it has no room: a candidate only where no other model's instance has some.
    Busy,
    /// It is to be probed: the next request may be sent to it once one worker has claimed it.
    HalfOpen,
    /// Only where there is no other. A half-open instance whose probe is under way stands here, too.
    Ejected,
}

impl Standing {
    /// The weight, from 1 (healthy) to 0 (ejected).
    pub fn weight(self) -> f64 {
        match self {
            Standing::Healthy | Standing::Doubted | Standing::HalfOpen => 1.0,
            Standing::Degraded(weight) => weight,
            Standing::Busy | Standing::Ejected => 0.0,
        }
    }

    /// The factor on expected times: one over the weight. Among ejected ones, time decides as ever.
    pub fn slowdown(self) -> f64 {
        match self {
            Standing::Degraded(weight) if weight > 0.0 => 1.0 / weight,
            _ => 1.0,
        }
    }
}
