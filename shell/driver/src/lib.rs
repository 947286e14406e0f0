//! Runs controllers and the scheduler: watches in, plans out.
