mod bad;
mod cleanup;
mod drivers;
mod fallback;

mod gone;
mod killed;
mod start;
