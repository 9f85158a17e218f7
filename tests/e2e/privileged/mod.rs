mod bad;
mod cleanup;
mod doctor;
mod drivers;
mod fallback;
mod full;

mod gone;
mod killed;
mod preheat;
mod start;
mod status;
mod systemd;
mod why;
