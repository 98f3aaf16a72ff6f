// Everything the Python module binds, in one list.
#pragma once

#include "activation.h"
#include "bits.h"
#include "copula.h"
#include "gram.h"
#include "jacobian.h"
#include "logistic.h"
#include "logistic_means.h"
#include "polyline.h"
#include "simd_probe.h"
#include "spline.h"
