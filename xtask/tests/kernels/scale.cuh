#pragma once

#define PEERSUM_SCALE 2.0f
