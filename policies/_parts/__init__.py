"""Second halves of single policies: what one policy file needs beside itself."""
