// Chroothelper finishes a new system from inside. The reimager copies it into
// the new root and starts it there, chrooted; nobody types its name.
//
// Synopsis:
//
//	/run/reassure/chroothelper <job.json
//
// Description:
//
//	It reads a job (reassure/image/reimage/steps.Job) as JSON from standard
//	input, does its steps, and writes the result of each as one line of JSON to
//	standard output. It exits with 1 when a step failed that must not.
package main

import (
	"context"
	"fmt"
	"os"

	"reassure/image/reimage/steps"
)

func main() {
	if err := steps.Main(context.Background(), "/", os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "chroothelper:", err)
		os.Exit(1)
	}
}
