mod bad;
mod chaos;
mod cleanup;
mod doctor;
mod drivers;
mod fallback;
mod full;

mod gone;
mod killed;
mod preheat;
mod start;
mod start_order;
mod status;
mod systemd;
mod why;
