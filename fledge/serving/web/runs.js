// The Runs page: which part of it is shown follows from what stands behind the # of the address.

import { showBar, takeKeyFromAddress } from "./common.js";

takeKeyFromAddress();
showBar("runs");
