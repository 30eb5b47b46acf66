// A Go program: Go's runtime makes system calls without libc.
package main

import (
	"net/http"
	"os"
)

func main() {
	if _, err := http.Get("http://198.51.100.7/"); err != nil {
		println(err.Error())
		os.Exit(1)
	}
}
