mod bad;
mod cleanup;
mod drivers;
mod fallback;
mod full;

mod gone;
mod killed;
mod start;
