//! What ranks run on: the GPUs of this machine, or the emulator.

mod choice;
mod connections;
mod emulators;
mod gpus;
mod kind;
mod streams;

pub(crate) use choice::{DeviceArgs, DeviceChoice, decide, print_device};
pub(crate) use connections::{CONNECTIONS_VARIABLE, give_each_stream_a_queue};
pub(crate) use emulators::Emulators;
pub(crate) use gpus::Gpus;
pub(crate) use kind::DeviceKind;
pub(crate) use streams::{DeviceOf, Machine};
