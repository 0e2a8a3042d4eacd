package main

// acts is the play, in order.
var acts = []Act{
	actRobbery,
	actMesh,
	actStrict,
	actKernel,
	actRequests,
	actLeastPrivilege,
	actExplain,
	actTrace,
	actTunnel,
	actJob,
	actAlone,
}
